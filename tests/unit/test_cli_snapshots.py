"""The commands `cistern snapshots ...` over the real routes."""

import json
from uuid import UUID

import pytest

from domain.volumes.model import Volume
from tests.unit.cli_terminal import Terminal, api_over
from tests.unit.fakes import FakeServices, snapshot_row, volume_row
from tests.unit.test_cli_volumes import answer

GIB = 2**30


@pytest.fixture
def fake() -> FakeServices:
    return FakeServices()


@pytest.fixture
def volumes(fake: FakeServices) -> list[Volume]:
    """Two volumes that have a snapshot of the same name."""
    volumes = [fake.volumes.add(volume_row(name, size=GIB)) for name in ("pg-1", "pg-2")]
    for volume in volumes:
        fake.snapshots.add(snapshot_row(volume, "first"))
    return volumes


@pytest.fixture
def cistern(fake: FakeServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv("CISTERN_URL", raising=False)
    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(api_over(fake))
    return terminal


def test_snapshots_are_listed_with_the_names_of_their_volumes(volumes: list[Volume], cistern: Terminal) -> None:
    code, out, _ = cistern("snapshots", "list")

    assert (code, [line.split()[:3] for line in out.splitlines()[1:]]) == (
        0,
        [["pg-2", "first", "ready"], ["pg-1", "first", "ready"]],
    )
    of_one = cistern("snapshots", "list", "--volume", "pg-1", "--state", "ready", "--json")
    assert [json.loads(line)["volume_id"] for line in of_one.out.splitlines()] == [str(volumes[0].id)]


def test_snapshot_of_one_volume_is_taken(fake: FakeServices, volumes: list[Volume], cistern: Terminal) -> None:
    assert cistern("snapshots", "take", "pg-1/second").code == 0
    (job,) = fake.jobs.rows.values()

    assert (job.kind, job.volume_id) == ("snapshot.take", volumes[0].id)


def test_labels_of_a_snapshot_are_given_and_filtered_by(
    fake: FakeServices, volumes: list[Volume], cistern: Terminal
) -> None:
    assert cistern("snapshots", "take", "pg-1/second", "--label", "release=7.2", "--allow-torn").code == 0
    (job,) = fake.jobs.rows.values()

    assert (job.volume_id, job.params["allow_torn"]) == (volumes[0].id, True)
    found = cistern("snapshots", "list", "--label", "release=7.2", "--json")
    (listed,) = [json.loads(line) for line in found.out.splitlines()]
    assert (listed["name"], listed["labels"]) == ("second", {"release": "7.2"})


def test_snapshots_of_many_volumes_are_taken(fake: FakeServices, cistern: Terminal) -> None:
    assert cistern("snapshots", "take", "nightly", "--label", "team=search").code == 0

    (request,) = fake.bulk.requests
    assert (request.kind, dict(request.selection.labels)) == ("bulk.snapshot", {"team": "search"})


@pytest.mark.parametrize("arguments", [("second",), ("pg-1/second", "--all")])
def test_one_volume_and_many_are_not_mixed(
    fake: FakeServices, volumes: list[Volume], cistern: Terminal, arguments: tuple[str, ...]
) -> None:
    code, _, err = cistern("snapshots", "take", *arguments)

    assert (code, "give either VOLUME/NAME" in err) == (2, True)
    assert (fake.jobs.rows, fake.bulk.requests) == ({}, [])


@pytest.mark.usefixtures("volumes")
def test_name_that_two_volumes_have_is_refused_with_both(fake: FakeServices, cistern: Terminal) -> None:
    code, _, err = cistern("snapshots", "restore", "first", "--yes")

    assert (code, err.count(" of volume "), fake.jobs.rows) == (2, 2, {})


def test_snapshot_is_named_by_its_volume(fake: FakeServices, volumes: list[Volume], cistern: Terminal) -> None:
    assert cistern("snapshots", "restore", "pg-1/first", "--yes").code == 0
    (job,) = fake.jobs.rows.values()

    assert (job.kind, job.volume_id) == ("snapshot.restore", volumes[0].id)


def test_restore_says_what_is_replaced(
    fake: FakeServices, volumes: list[Volume], cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "n\n")
    code, _, err = cistern("snapshots", "restore", "pg-1/first")

    assert (code, fake.jobs.rows) == (1, {})
    assert err.startswith(f"Replace the data of the volume {volumes[0].name} by the snapshot first of 2026-01-31T12:00")


def test_clone_is_a_new_volume(fake: FakeServices, volumes: list[Volume], cistern: Terminal) -> None:
    code, _, err = cistern("snapshots", "clone", "pg-1/first", "copy", "--size", "2G", "--label", "team=search")
    copy = next(volume for volume in fake.volumes.rows.values() if volume.name == "copy")

    assert (code, copy.size, copy.labels, len(fake.volumes.rows)) == (0, 2 * GIB, {"team": "search"}, 3), err


def test_snapshot_is_deleted(fake: FakeServices, volumes: list[Volume], cistern: Terminal) -> None:
    code, _, err = cistern("snapshots", "delete", "pg-2/first")
    assert (code, fake.jobs.rows) == (2, {}), err
    assert cistern("snapshots", "delete", "pg-2/first", "--yes", "--no-wait").code == 0
    (job,) = fake.jobs.rows.values()

    assert (job.kind, fake.snapshots.rows[job.snapshot_id or UUID(int=0)].volume_id) == (
        "snapshot.delete",
        volumes[1].id,
    )
