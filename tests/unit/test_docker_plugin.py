"""The volume plugin, called as Docker and Podman call it, on a stand-in for the API."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.docker_plugin import driver
from api.docker_plugin.attachments import PODMAN_ID
from tests.support.attachment_api import CREATED_AT, AttachmentApi, Refused
from tests.support.docker_plugin import NODE, Engine, plugin
from tests.unit.docker_plugin_fixtures import api as api  # noqa: PLC0414 (a fixture)
from tests.unit.docker_plugin_fixtures import engine as engine  # noqa: PLC0414 (a fixture)
from tests.unit.docker_plugin_fixtures import url as url  # noqa: PLC0414 (a fixture)

GIB = 1 << 30
PODMAN = f"docker:{PODMAN_ID}"


def named(name: str) -> dict[str, str]:
    return {"Name": name}


class TestProtocol:
    def test_plugin_is_a_volume_driver_of_global_scope(self, engine: Engine) -> None:
        assert engine.call("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
        assert engine.call("VolumeDriver.Capabilities", {}) == {"Capabilities": {"Scope": "global"}}

    def test_unknown_call_is_not_found(self, engine: Engine) -> None:
        status, answer = engine.answer(engine.send("VolumeDriver.Explode", {}))

        assert (status, answer) == (404, {"Err": "Cistern's volume plugin has no call /VolumeDriver.Explode"})

    @pytest.mark.parametrize(
        ("call", "body", "message"),
        [
            ("VolumeDriver.Get", None, "Name is missing"),
            ("VolumeDriver.Get", {"Name": ""}, "Name is missing"),
            ("VolumeDriver.Get", [1], "it must be a JSON object"),
            ("VolumeDriver.Mount", {"Name": "data"}, "ID is missing"),
            ("VolumeDriver.Create", {"Name": "data", "Opts": {"size": 1}}, "Opts must be an object of texts"),
        ],
    )
    def test_malformed_request_is_an_error(self, engine: Engine, call: str, body: object, message: str) -> None:
        assert engine.error(call, body) == f"malformed request: {message}"

    def test_unexpected_error_is_answered(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver.VolumeDriver, "list", lambda _: 1 / 0)

        assert engine.error("VolumeDriver.List") == "unexpected error in Cistern's volume plugin: its log says more"


class TestCreate:
    def test_volume_is_created_with_its_options(self, engine: Engine, api: AttachmentApi) -> None:
        engine.create("data", size="10GiB", filesystem="xfs", autogrow="80:20%:1TiB", **{"label.team": "search"})

        (body,) = api.bodies("POST", "/volumes")
        policy = {"usage_above": 80, "percent": 20, "up_to": 1 << 40}
        assert body == {
            "name": "data",
            "size": 10 * GIB,
            "filesystem": "xfs",
            "backend": None,
            "labels": {"team": "search"},
            "autogrow": policy,
        }

    def test_file_system_is_ext4_unless_it_is_given(self, engine: Engine, api: AttachmentApi) -> None:
        engine.create("data", size="1GiB")

        assert api.bodies("POST", "/volumes")[0]["filesystem"] == "ext4"

    def test_size_is_required(self, engine: Engine) -> None:
        assert engine.error("VolumeDriver.Create", {"Name": "data", "Opts": None}).startswith("option size is missing")

    def test_size_is_that_of_the_plugin_if_it_has_one(self, url: str, tmp_path: Path, api: AttachmentApi) -> None:
        with plugin(url, tmp_path, default_size=GIB) as engine:
            engine.create("data")

        assert api.bodies("POST", "/volumes")[0]["size"] == GIB

    def test_repeated_creation_is_fine(self, engine: Engine, api: AttachmentApi) -> None:
        for _ in range(2):
            engine.create("data", size="1GiB", filesystem="xfs")
        engine.create("data")

        assert len(api.bodies("POST", "/volumes")) == 1

    def test_creation_is_fine_if_another_host_was_faster(self, engine: Engine, api: AttachmentApi) -> None:
        api.held.add("volume.create")
        with ThreadPoolExecutor() as pool:
            both = [pool.submit(engine.create, "data", size="1GiB") for _ in range(2)]
            api.wait_for(lambda: bool(api.bodies("POST", "/volumes")))
            api.finish("volume.create")
            assert [one.result() for one in both] == [{}, {}]

        assert len(api.volumes) == 1

    def test_existing_volume_that_differs_is_an_error_that_names_the_difference(
        self, engine: Engine, api: AttachmentApi
    ) -> None:
        api.add_volume("data", filesystem="xfs")

        error = engine.error("VolumeDriver.Create", {"Name": "data", "Opts": {"size": "2GiB", "filesystem": "ext4"}})
        assert "its size is 1 GiB, less than 2 GiB; its file system is xfs, not ext4" in error

    def test_existing_volume_without_a_file_system_is_an_error(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data", filesystem=None)

        assert "has no file system" in engine.error("VolumeDriver.Create", named("data"))

    def test_volume_is_made_from_a_snapshot_with_its_size_and_file_system(
        self, engine: Engine, api: AttachmentApi
    ) -> None:
        api.add_volume("postgres")
        engine.create("data", from_snapshot="postgres/monday")

        (body,) = api.bodies("POST", "/volumes")
        assert body == {"name": "data", "size": None, "backend": None, "labels": {}, "from_snapshot": "5" * 8}

    def test_volume_is_made_from_a_volume(self, engine: Engine, api: AttachmentApi) -> None:
        source = api.add_volume("postgres")
        engine.create("data", from_volume="postgres")
        engine.create("data", from_volume="postgres")

        assert api.bodies("POST", "/volumes")[0]["from_volume"] == source["id"]

    def test_unknown_source_is_an_error(self, engine: Engine) -> None:
        error = engine.error("VolumeDriver.Create", {"Name": "data", "Opts": {"from_volume": "nothing"}})

        assert "there is no volume" in error

    def test_creation_that_fails_at_once_is_an_error(self, engine: Engine, api: AttachmentApi) -> None:
        api.failing["volume.create"] = {"code": "storage-full", "detail": "The storage is full"}

        assert "The storage is full" in engine.error("VolumeDriver.Create", {"Name": "data", "Opts": {"size": "1G"}})
        error = engine.error("VolumeDriver.Create", named("data"))
        assert error == (
            "volume data is in the state error, The storage is full: `cistern volumes delete data` removes it"
        )

    def test_creation_returns_while_the_job_is_at_work(
        self, engine: Engine, api: AttachmentApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "CREATE_SECONDS", 0.1)
        api.held.add("volume.create")

        assert engine.create("data", size="1GiB") == {}

    def test_creation_waits_for_the_removal_of_a_volume_with_this_name(
        self, engine: Engine, api: AttachmentApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "SHORT_SECONDS", 0.2)
        old = api.add_volume("data", size=1)
        api.held.add("volume.delete")
        engine.call("VolumeDriver.Remove", named("data"))
        monkeypatch.setattr(driver, "SHORT_SECONDS", 20)
        before = len(api.requests)
        with ThreadPoolExecutor() as pool:
            created = pool.submit(engine.create, "data", size="1GiB")
            api.wait_for(lambda: any(path.startswith("/jobs/") for _, path, _ in api.requests[before:]))
            api.finish("volume.delete")
            created.result()

        assert [one["size"] for one in api.volumes.values()] == [GIB]
        assert old["id"] not in api.volumes

    def test_request_whose_response_is_lost_is_repeated_with_its_key(self, engine: Engine, api: AttachmentApi) -> None:
        api.lost_answers.add(("POST", "/volumes"))
        engine.create("data", size="1GiB")

        assert api.lost_answers == set()
        assert len(api.bodies("POST", "/volumes")) == 1

    def test_name_of_a_removed_volume_can_be_used_again(self, engine: Engine, api: AttachmentApi) -> None:
        for _ in range(2):
            engine.create("data", size="1GiB")
            engine.call("VolumeDriver.Remove", named("data"))

        assert len(api.bodies("POST", "/volumes")) == 2

    def test_rejected_key_is_an_error_that_names_the_setting(self, engine: Engine, api: AttachmentApi) -> None:
        api.refusals["GET", "/volumes"] = Refused(401, "key-invalid", "The key is not valid")

        assert "CISTERN_KEY" in engine.error("VolumeDriver.Create", {"Name": "data", "Opts": {"size": "1GiB"}})

    def test_api_that_is_away_is_an_error_that_names_the_setting(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "SHORT_SECONDS", 0.2)
        with plugin("http://127.0.0.1:9", tmp_path) as engine:
            assert "check CISTERN_URL of the plugin" in engine.error("VolumeDriver.Get", named("data"))


class TestLists:
    def test_volume_is_described(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data", labels={"team": "search"})
        path = engine.mount("data", "c1")

        assert engine.call("VolumeDriver.Get", named("data")) == {
            "Volume": {
                "Name": "data",
                "Mountpoint": path,
                "CreatedAt": CREATED_AT,
                "Status": {
                    "state": "available",
                    "size": GIB,
                    "filesystem": "ext4",
                    "used": 4096,
                    "backend": "local",
                    "filesystem_size": GIB // 2,
                    "filesystem_used": 8192,
                    "labels": {"team": "search"},
                },
            }
        }

    def test_unknown_volume_is_an_error(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("going", state="deleting")

        for name in ("data", "going"):
            assert engine.error("VolumeDriver.Get", named(name)).startswith(f"there is no volume {name}: ")

    def test_name_of_volumes_in_several_projects_is_an_error(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        api.add_volume("data")

        assert "CISTERN_PROJECT" in engine.error("VolumeDriver.Get", named("data"))

    def test_all_volumes_with_a_file_system_are_listed(self, engine: Engine, api: AttachmentApi) -> None:
        for number in range(5):
            api.add_volume(f"data-{number}")
        api.add_volume("raw", filesystem=None)
        api.add_volume("going", state="deleting")
        path = engine.mount("data-4", "c1")
        elsewhere = api.add_volume("data-5")
        api.add_attachment(elsewhere, "there", "docker:c2")

        listed = engine.call("VolumeDriver.List")["Volumes"]
        assert [(one["Name"], one["Mountpoint"]) for one in listed] == [
            *((f"data-{number}", "") for number in range(4)),
            ("data-4", path),
            ("data-5", ""),
        ]


class TestRemove:
    def test_volume_is_deleted(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        engine.call("VolumeDriver.Remove", named("data"))
        engine.call("VolumeDriver.Remove", named("data"))

        assert api.volumes == {}

    def test_volume_that_a_container_has_mounted_stays(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        engine.mount("data", "c1")

        assert "attached on node here by docker:c1" in engine.error("VolumeDriver.Remove", named("data"))
        assert api.holders("data") == ["docker:c1"]

    def test_volume_that_another_program_has_attached_stays(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_attachment(api.add_volume("data"), NODE, "shell")

        assert "attached on node here by shell" in engine.error("VolumeDriver.Remove", named("data"))

    def test_attachment_of_a_mount_whose_answer_was_lost_does_not_keep_the_volume(
        self, engine: Engine, api: AttachmentApi
    ) -> None:
        api.add_attachment(api.add_volume("data"), NODE, PODMAN)
        engine.call("VolumeDriver.Remove", named("data"))

        assert api.volumes == {}

    def test_snapshots_keep_the_volume(self, engine: Engine, api: AttachmentApi) -> None:
        volume = api.add_volume("data")
        api.refusals["DELETE", volume["id"]] = Refused(409, "volume-has-snapshots", "It has snapshots")

        assert "delete its snapshots first" in engine.error("VolumeDriver.Remove", named("data"))

    def test_volume_without_a_file_system_stays(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("raw", filesystem=None)

        assert "has no file system" in engine.error("VolumeDriver.Remove", named("raw"))
        assert len(api.volumes) == 1
