"""`cistern check`: its output and its exit codes, without Redis and without the API."""

import asyncio
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from api.cli.app import main
from domain.services import open_services
from domain.settings import Settings
from tests.integration.check_builders import grant_at
from tests.integration.job_builders import MIB

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
