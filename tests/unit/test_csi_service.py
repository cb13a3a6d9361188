"""The CSI plugin as a whole: who it is, whether it is ready, and which status each error becomes."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc import StatusCode

from api.cli.client import ApiCallFailed, ApiClient, ApiUnreachable
from api.csi import controller, identity, node
from api.csi import csi_pb2 as csi
from api.csi.errors import JOB_STATUS, PROBLEM_STATUS, job_failure, status_of
from api.csi.generate import ROOT, generate
from api.csi.server import serving
from api.job_codes import JOB_EXPLANATIONS
from api.problems import PROBLEM_TYPES
from domain.errors import ConfigurationError
from tests.unit.csi_client import Plugin, open_plugin, rejection, status
from tests.unit.fake_cistern import STATUSES, FakeCistern


@pytest.fixture
async def plugin(tmp_path: Path) -> AsyncIterator[Plugin]:
    async with open_plugin(tmp_path) as plugin:
        yield plugin


async def test_plugin_says_its_name_and_that_it_has_a_controller(plugin: Plugin) -> None:
    info = await plugin.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    answer = await plugin.identity.GetPluginCapabilities(csi.GetPluginCapabilitiesRequest())

    assert (info.name, bool(info.vendor_version)) == (identity.PLUGIN_NAME, True)
    assert answer.capabilities[0].service.type == csi.PluginCapability.Service.CONTROLLER_SERVICE
    assert answer.capabilities[1].volume_expansion.type == csi.PluginCapability.VolumeExpansion.ONLINE


async def test_plugin_is_ready_if_the_api_answers(plugin: Plugin) -> None:
    assert (await plugin.identity.Probe(csi.ProbeRequest())).ready.value is True
    plugin.cistern.answer = None

    assert (await plugin.identity.Probe(csi.ProbeRequest())).ready.value is False


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "UNAVAILABLE"),
        ("database-unavailable", "UNAVAILABLE"),
        ("rate-limited", "UNAVAILABLE"),
        ("key-invalid", "UNAUTHENTICATED"),
        ("role-insufficient", "PERMISSION_DENIED"),
        ("internal", "INTERNAL"),
    ],
)
async def test_answers_of_the_api_become_statuses(plugin: Plugin, answer: str | None, expected: str) -> None:
    plugin.cistern.answer = answer
    request = csi.NodeStageVolumeRequest(volume_id="01a0b1c2-0000-7000-8000-000000000001")

    assert await status(plugin.volume()) == expected
    assert (
        await status(plugin.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=request.volume_id))) == expected
    )
    assert await status(plugin.controller.ListSnapshots(csi.ListSnapshotsRequest())) == expected


async def test_crash_of_a_call_is_an_internal_error_and_the_process_goes_on(
    plugin: Plugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin.cistern, "backends", [{"name": "local"}])
    assert await rejection(plugin.controller.GetCapacity(csi.GetCapacityRequest())) == (
        "INTERNAL",
        "the server is not Cistern's API: its response has no member `free`",
    )
    monkeypatch.setattr(plugin.cistern, "request", lambda *_, **__: 1 / 0)
    code, message = await rejection(plugin.volume())
    monkeypatch.undo()

    assert (code, message) == ("INTERNAL", "ZeroDivisionError: division by zero")
    assert (await plugin.volume()).volume_id


def test_every_method_of_the_interface_file_has_a_call() -> None:
    described: FileDescriptor = csi.DESCRIPTOR
    calls = {"Identity": identity.CALLS, "Controller": controller.CALLS, "Node": node.CALLS}

    methods = {name: set(service.methods_by_name) for name, service in described.services_by_name.items()}
    assert {name: set(table) for name, table in calls.items()} == methods


def test_every_problem_of_the_api_has_a_status() -> None:
    assert set(PROBLEM_TYPES) <= set(PROBLEM_STATUS)
    assert set(PROBLEM_STATUS) <= set(PROBLEM_TYPES) | set(STATUSES)


def test_codes_of_jobs_are_known_codes() -> None:
    assert set(JOB_STATUS) <= set(JOB_EXPLANATIONS) | {"volume-in-use"}


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ({"code": "volume-busy", "status": 409}, StatusCode.ABORTED),
        ({"code": "new", "status": 404}, StatusCode.NOT_FOUND),
        ({"code": "new", "status": 422}, StatusCode.INVALID_ARGUMENT),
        ({"code": "new", "status": 418}, StatusCode.INTERNAL),
        (None, StatusCode.INTERNAL),
    ],
)
def test_problem_that_is_not_known_has_the_status_of_its_class(
    problem: dict[str, object] | None, expected: StatusCode
) -> None:
    assert status_of(ApiCallFailed("", problem)) is expected
    assert status_of(ApiUnreachable("", problem)) is StatusCode.UNAVAILABLE


def test_cancelled_job_is_one_to_call_again_for() -> None:
    job = {"id": "1", "status": "cancelled", "error": None}

    assert job_failure(job).status is StatusCode.ABORTED


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "unix://relative", "/tmp/csi.sock"])
async def test_endpoint_must_be_a_unix_socket(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="unix:///PATH"):
        async with serving(ApiClient(FakeCistern()), endpoint, "node-1"):
            pass


async def test_endpoint_must_be_in_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no socket"):
        async with serving(ApiClient(FakeCistern()), f"unix://{tmp_path}/none/csi.sock", "node-1"):
            pass


async def test_socket_is_for_the_user_and_the_group_only_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    async with serving(ApiClient(FakeCistern()), f"unix://{path}", "node-1"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


async def test_socket_that_a_killed_process_has_left_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        async with open_plugin(tmp_path) as plugin:
            assert (await plugin.identity.Probe(csi.ProbeRequest())).ready.value
            (tmp_path / "csi.sock").rename(tmp_path / "kept")
        (tmp_path / "kept").rename(tmp_path / "csi.sock")


def test_generated_modules_are_those_of_the_interface_file(tmp_path: Path) -> None:
    generate(tmp_path)
    generated = sorted(tmp_path.rglob("*"))

    assert [file.name for file in generated if file.is_file()] == ["csi_pb2.py", "csi_pb2.pyi", "csi_pb2_grpc.py"]
    for file in generated:
        if file.is_file():
            assert (ROOT / file.relative_to(tmp_path)).read_text() == file.read_text(), "run make"
