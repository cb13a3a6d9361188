"""`cistern check`: its output and its exit codes, without Redis and without the API."""

import asyncio
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from api.cli.app import main
from domain.check import service as check_service
from domain.check.rows import RowReader
from domain.services import open_services
from domain.settings import Settings
from domain.volumes.model import Growth
from tests.integration.check_builders import grant_at
from tests.integration.job_builders import MIB, set_job, sql
from tests.integration.snapshot_builders import a_stored_volume, claimed

Check = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def check(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Run the command with a file backend; it returns the exit code, the lines of stdout, and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISTERN_REDIS_URL", raising=False)
    monkeypatch.setenv("CISTERN_DATABASE_URL", database_url)
    monkeypatch.setenv("CISTERN_BACKENDS", json.dumps({"disk": f"file:{tmp_path}/disk"}))

    def run(*arguments: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["cistern", "check", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out.splitlines(), captured.err

    return run


def add_unknown_volume(settings: Settings, tmp_path: Path) -> UUID:
    """Create data on the disk that has no row."""
    disk = settings.model_copy(update={"backends": {"disk": f"file:{tmp_path}/disk"}})

    async def create() -> None:
        async with open_services(disk, adopt=True) as services:
            await services.backends.get("disk").create(volume_id, MIB, grant_at(1))

    volume_id = uuid7()
    asyncio.run(create())
    return volume_id


def adopt(settings: Settings, backends: dict[str, str]) -> None:
    """Give the roots of these backends their identities, as a worker does."""

    async def start() -> None:
        async with open_services(settings.model_copy(update={"backends": backends}), adopt=True):
            pass

    asyncio.run(start())


async def forget_identity(settings: Settings) -> None:
    """Make PostgreSQL forget which disk it was, as a database from before identities does."""
    async with open_services(settings) as services:
        await sql(services, "UPDATE backends SET identity = NULL")


async def a_leased_job_behind_the_storages_fence(settings: Settings) -> None:
    """A worker has died less than a lease ago, and the database has lost later attempts."""
    async with open_services(settings, adopt=True) as services:
        volume = await a_stored_volume(services, backend="disk")
        job = await services.volumes.request_expand(volume.id, Growth(to=2 * MIB))
        await claimed(services, job)
        await services.backends.get("disk").seal(volume.id, grant_at(70))
        await set_job(services, job.id, "lease_expires_at = now() + interval '20 seconds'")


def test_check_without_findings_prints_what_was_checked(check: Check) -> None:
    assert check() == (0, ["nothing there; all agree"], "")


def test_each_finding_is_one_line_and_a_full_repair_exits_with_zero(
    check: Check, settings: Settings, tmp_path: Path
) -> None:
    volume_id = add_unknown_volume(settings, tmp_path)
    code, (finding, total), _ = check()

    assert code == 1
    assert re.fullmatch(
        rf"no-row  volume {volume_id}  no row for {tmp_path}/disk/{volume_id}/data \(.+\)  \[run `.+ --repair`\]",
        finding,
    )
    assert total == "volumes on backends: 1; found 1, repaired 0, left 1"
    code, (finding, total), _ = check("--repair")
    assert (code, finding.endswith("  [repaired]")) == (0, True)
    assert total == "volumes on backends: 1; found 1, repaired 1, left 0"
    assert check() == (0, ["volumes: 1, snapshots: 0, volumes on backends: 1; all agree"], "")


def test_incomplete_repair_exits_with_one(check: Check, settings: Settings, tmp_path: Path) -> None:
    with (tmp_path / "disk" / str(add_unknown_volume(settings, tmp_path)) / "data").open("r+b") as file:
        file.truncate(0)

    assert check("--repair")[0] == 1


@pytest.mark.parametrize("control", ["\x1b[1G", "\x1b]52;c;AA==\x07", "\n", "\x07", os.fsdecode(b"\x9b")])
def test_names_in_the_trash_cannot_forge_that_all_agree(
    check: Check, settings: Settings, tmp_path: Path, control: str
) -> None:
    volume_id = add_unknown_volume(settings, tmp_path)
    (tmp_path / "disk" / ".trash" / f"{volume_id}.1-0{control}nothing there; all agree").mkdir()
    code, lines, _ = check()

    assert (code, [line.partition("  ")[0] for line in lines[:-1]]) == (1, ["no-row", "leftover"])
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("nothing there") for line in lines)


def test_json_output_has_one_line_per_finding_and_no_total(check: Check, settings: Settings, tmp_path: Path) -> None:
    volume_id = add_unknown_volume(settings, tmp_path)
    code, lines, errors = check("--json")
    (finding,) = map(json.loads, lines)

    assert (code, finding["code"], finding["subject"], finding["repaired"]) == (
        1,
        "no-row",
        f"volume {volume_id}",
        False,
    )
    assert "left 1" in errors


def test_backend_that_cannot_be_looked_at_exits_with_two_and_the_others_are_compared(
    check: Check, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume_id = add_unknown_volume(settings, tmp_path)
    both = {"disk": f"file:{tmp_path}/disk", "gone": f"file:{tmp_path}/gone"}
    adopt(settings, both)
    (tmp_path / "gone").rename(tmp_path / "unmounted")
    monkeypatch.setenv("CISTERN_BACKENDS", json.dumps(both))

    code, (finding, unreadable, total), _ = check()
    assert (code, finding.split()[:3]) == (2, ["no-row", "volume", str(volume_id)])
    assert unreadable.startswith("unreadable  backend 'gone'  ")
    assert total.endswith("found 1, repaired 0, left 1; could not look at backend 'gone'")
    assert check("--repair")[0] == 2
    code, (_, total), _ = check()
    assert (code, total.partition("; ")[2]) == (2, "the rest agrees; could not look at backend 'gone'")


def test_disk_of_another_installation_exits_with_two(check: Check, settings: Settings, tmp_path: Path) -> None:
    add_unknown_volume(settings, tmp_path)
    identity = tmp_path / "disk" / ".cistern"
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "installation": str(uuid7())}))

    code, (unreadable, _), _ = check()
    assert code == 2
    assert "belongs to another installation" in unreadable


def test_volume_that_cannot_be_read_exits_with_two(check: Check, settings: Settings, tmp_path: Path) -> None:
    volume_id = add_unknown_volume(settings, tmp_path)
    assert check("--repair")[0] == 0
    (tmp_path / "disk" / ".fences" / str(volume_id)).write_text("damaged")

    code, lines, _ = check()
    assert (code, lines[0].startswith(f"unreadable  volume {volume_id} ")) == (2, True)


@pytest.mark.parametrize("names", [["elsewhere"], ["disk", "elsewhere"]])
def test_volumes_on_a_backend_that_is_not_configured_or_was_never_used_exit_with_two(
    check: Check, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    add_unknown_volume(settings, tmp_path)
    assert check("--repair")[0] == 0
    asyncio.run(forget_identity(settings))
    monkeypatch.setenv("CISTERN_BACKENDS", json.dumps({name: f"file:{tmp_path}/new/{name}" for name in names}))

    code, lines, _ = check()
    assert (code, lines[-1].endswith("could not look at backend 'disk'")) == (2, True)


def test_postgresql_that_does_not_answer_exits_with_two_and_one_line(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")

    code, lines, errors = check()
    assert (code, lines, errors.count("\n")) == (2, [], 1)
    assert errors.startswith("cistern: ")


def test_unexpected_error_is_not_taken_for_findings(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowReader, "page", lambda *_: 1 / 0)

    code, lines, errors = check()
    assert (code, lines) == (2, [])
    assert "ZeroDivisionError" in errors


@pytest.fixture
def leases_end(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """End all leases when a check waits for them, instead of waiting; return how long it would have waited."""
    waits: list[float] = []

    async def end_leases(seconds: float) -> None:
        waits.append(seconds)
        async with open_services(settings) as services:
            await sql(services, "UPDATE jobs SET lease_expires_at = now() - interval '1 second'")

    monkeypatch.setattr(check_service, "asyncio", SimpleNamespace(sleep=end_leases))
    return waits


def test_repair_says_how_long_it_waits_for_a_lease(
    check: Check, settings: Settings, tmp_path: Path, leases_end: list[float]
) -> None:
    disk = settings.model_copy(update={"backends": {"disk": f"file:{tmp_path}/disk"}, "lease_seconds": 60})
    asyncio.run(a_leased_job_behind_the_storages_fence(disk))

    code, (finding, _), _ = check()
    assert code == 1
    found = re.fullmatch(r"fence-behind  .+  \[.+: check again in (\d+) s, or when the job has ended\]", finding)
    assert found is not None
    assert 0 < int(found[1]) <= 20
    code, lines, errors = check("--repair")
    assert (code, lines[0].endswith("[repaired]")) == (0, True)
    (wait,) = leases_end
    assert 0 < wait <= int(found[1]) + 0.2, "the rest of the lease, and a margin"
    assert errors == f"waiting {math.ceil(wait)} s for the leases of workers that may be dead\n"
    assert check()[0] == 0


def test_check_refuses_a_database_that_is_not_migrated(
    check: Check, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = re.sub(r"/test_\w+", "/cistern", settings.database_url)
    monkeypatch.setenv("CISTERN_DATABASE_URL", elsewhere)

    code, lines, errors = check()
    assert (code, lines) == (2, [])
    assert "run `cistern migrate`" in errors


@pytest.mark.parametrize(
    ("name", "value"),
    [("CISTERN_DATABASE_URL", "mysql://"), ("CISTERN_BACKENDS", '{"disk": "tape:"}'), ("CISTERN_MAX_JOBS", "many")],
)
def test_unusable_setting_is_named(check: Check, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    code, lines, errors = check()
    assert (code, lines) == (2, [])
    assert re.fullmatch(rf"cistern: {name}.+\n", errors)
