"""The commands `cistern volumes ...` over the real routes: requests, output, questions and exit status."""

import json
import sys
from io import StringIO
from uuid import UUID

import pytest

from domain.bulk.expand import BulkExpandRequest, GrowthPolicy
from domain.jobs.states import JobStatus
from domain.operations import VolumeState
from tests.unit.cli_terminal import Terminal, api_over
from tests.unit.fakes import FakeServices, job_row, snapshot_row, volume_row

GIB = 2**30
WATCHFUL = ("--inodes-above", "90", "--cooldown-seconds", "60")


@pytest.fixture
def fake() -> FakeServices:
    return FakeServices()


@pytest.fixture
def cistern(fake: FakeServices, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv("CISTERN_URL", raising=False)
    terminal = Terminal(monkeypatch, capsys)
    terminal.handle_requests(api_over(fake))
    return terminal


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let a person at a terminal answer a question."""
    terminal = StringIO(text)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)


def test_volumes_are_listed_with_sizes_for_people(fake: FakeServices, cistern: Terminal) -> None:
    fake.volumes.add(volume_row("pg-1", size=10 * GIB, used=5 * GIB, labels={"tier": "gold", "team": "search"}))
    code, out, _ = cistern("volumes", "list")

    titles, line = out.splitlines()
    assert (code, titles.split()) == (0, ["name", "state", "size", "used", "filesystem", "backend", "labels", "id"])
    assert line.split("  ")[0] == "pg-1"
    assert all(part in line for part in ("available", "10 GiB", "5 GiB (50 %)", "team=search tier=gold"))


def test_list_applies_its_filters(fake: FakeServices, cistern: Terminal) -> None:
    one = fake.volumes.add(volume_row("one", labels={"team": "a=b"}))
    fake.volumes.add(volume_row("two", labels={"team": "other"}))
    fake.volumes.add(volume_row("three", labels={"team": "a=b"}, state=VolumeState.ERROR))
    code, out, _ = cistern("volumes", "list", "--label", "team=a=b", "--state", "available", "--json")

    assert (code, [json.loads(line)["id"] for line in out.splitlines()]) == (0, [str(one.id)])


def test_list_that_is_cut_says_so(fake: FakeServices, cistern: Terminal) -> None:
    for number in range(205):
        fake.volumes.add(volume_row(f"v{number}"))
    cut = cistern("volumes", "list", "--limit", "203", "--json")
    whole = cistern("volumes", "list", "--limit", "205", "--json")

    assert (cut.code, len(cut.out.splitlines())) == (0, 203)
    assert cut.err == "There are more than these 203: --limit shows more.\n"
    assert (len(whole.out.splitlines()), whole.err) == (205, "")


@pytest.mark.parametrize("label", ["team", "team=a --label team=b"])
def test_label_that_is_none_sends_no_request(cistern: Terminal, label: str) -> None:
    code, out, err = cistern("volumes", "list", "--label", *label.split())

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("cistern: --label team")


def test_volume_is_shown_by_name_id_and_beginning_of_its_id(fake: FakeServices, cistern: Terminal) -> None:
    volume = fake.volumes.add(volume_row("pg-1"))
    for text in ("pg-1", str(volume.id), str(volume.id).upper(), volume.id.hex[:13], str(volume.id)[:30]):
        code, out, _ = cistern("volumes", "show", text, "--json")
        assert (code, json.loads(out)["id"]) == (0, str(volume.id)), text
    assert "8 KiB (8,192 bytes)" in cistern("volumes", "show", "pg-1").out


def test_name_counts_more_than_the_beginning_of_an_id(fake: FakeServices, cistern: Terminal) -> None:
    first = fake.volumes.add(volume_row("one"))
    named = fake.volumes.add(volume_row(first.id.hex[:8]))

    assert json.loads(cistern("volumes", "show", named.name, "--json").out)["id"] == str(named.id)


def test_ambiguous_beginning_is_refused_with_the_candidates(fake: FakeServices, cistern: Terminal) -> None:
    volumes = [fake.volumes.add(volume_row(f"v{number}")) for number in range(12)]
    prefix = volumes[0].id.hex[:6]
    code, out, err = cistern("volumes", "delete", prefix, "--yes")

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"cistern: '{prefix}' may be any of these, give an id: {volumes[-1].id} (v11), ")
    assert err.endswith("(v2) and more\n")
    assert fake.jobs.rows == {}


@pytest.mark.parametrize("text", ["nobody", "0123", "a b", "../jobs", ""])
def test_volume_that_is_not_there_is_one_line(cistern: Terminal, text: str) -> None:
    code, out, err = cistern("volumes", "show", text)

    assert (code, out) == (2, "")
    assert err == f"cistern: there is no volume with the name, id or beginning of an id {text!r}\n"


@pytest.mark.parametrize(("status", "expected"), [("succeeded", 0), ("failed", 1)])
def test_create_waits_for_the_job_and_exits_like_it(
    fake: FakeServices, cistern: Terminal, status: str, expected: int
) -> None:
    fake.watcher.final_status = JobStatus(status)
    code, out, _ = cistern("volumes", "create", "pg-1", "--size", "10G", "--label", "team=search")
    (volume,) = fake.volumes.rows.values()

    assert (code, volume.size, volume.labels) == (expected, 10 * GIB, {"team": "search"})
    assert [line.split()[1:] for line in out.splitlines()] == [["volume.create", "queued"], ["volume.create", status]]
    code, out, _ = cistern("volumes", "create", "pg-2", "--size", "4096", "--json")
    assert (code, [json.loads(line)["status"] for line in out.splitlines()]) == (expected, [status])


@pytest.mark.parametrize(("options", "expected"), [("", None), ("--filesystem xfs", "xfs")])
def test_create_asks_for_the_file_system_that_is_given(
    fake: FakeServices, cistern: Terminal, options: str, expected: str | None
) -> None:
    code, _, err = cistern("volumes", "create", "pg-1", "--size", "10G", *options.split())
    (volume,) = fake.volumes.rows.values()

    assert (code, volume.filesystem) == (0, expected), err


def test_three_sizes_of_a_volume_are_shown_apart(fake: FakeServices, cistern: Terminal) -> None:
    reported = {"filesystem_size": 9 * GIB, "filesystem_used": 2 * GIB, "inodes": 100, "inodes_used": 7}
    fake.volumes.add(volume_row("pg-1", size=10 * GIB, used=3 * GIB, filesystem="ext4", **reported))
    lines = [line.split(maxsplit=1) for line in cistern("volumes", "show", "pg-1").out.splitlines()]
    shown = {name: text.strip() for name, text in lines}

    assert [shown[name].partition(" (")[0] for name in ("size", "used", "filesystem_size", "filesystem_used")] == [
        *("10 GiB", "3 GiB", "9 GiB", "2 GiB")
    ]
    assert (shown["inodes"], shown["inodes_used"], shown["filesystem"]) == ("100", "7", "ext4")


def test_create_without_waiting_prints_the_accepted_job(fake: FakeServices, cistern: Terminal) -> None:
    code, out, _ = cistern("volumes", "create", "pg-1", "--size", "4096", "--no-wait", "--json")

    assert (code, json.loads(out)["status"], fake.watcher.waits) == (0, "queued", [])


def test_refused_size_is_named(cistern: Terminal) -> None:
    code, _, err = cistern("volumes", "create", "pg-1", "--size", "much")

    assert (code, err.startswith("cistern: size: must be a whole number of bytes")) == (2, True)


def test_name_expands_one_volume(fake: FakeServices, cistern: Terminal) -> None:
    volume = fake.volumes.add(volume_row("pg-1", size=GIB))

    assert cistern("volumes", "expand", "pg-1", "--by", "1G").code == 0
    (job,) = fake.jobs.rows.values()
    assert (job.kind, job.volume_id, job.params["to_size"]) == ("volume.expand", volume.id, 2 * GIB)


def test_selector_expands_many_volumes(fake: FakeServices, cistern: Terminal) -> None:
    options = ("--label", "team=search", "--percent", "20", "--usage-above", "80", "--up-to", "1T")
    code, _, err = cistern("volumes", "expand", *options, "--max-concurrent", "7")

    assert code == 0, err
    (request,) = fake.bulk.requests
    assert (dict(request.selection.labels), request.max_concurrent) == ({"team": "search"}, 7)
    assert isinstance(request, BulkExpandRequest)
    policy = request.policy
    assert isinstance(policy, GrowthPolicy)
    assert (policy.percent, policy.usage_above, policy.up_to) == (20, 80, 2**40)
    assert cistern("volumes", "expand", "--all", "--percent", "20", *WATCHFUL).code == 0
    (_, request) = fake.bulk.requests
    assert isinstance(request, BulkExpandRequest)
    assert isinstance(request.policy, GrowthPolicy)
    assert (request.policy.inodes_above, request.policy.cooldown_seconds) == (90, 60)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--percent", "20"),
        ("pg-1", "--all", "--percent", "20"),
        ("pg-1", "--percent", "20", "--usage-above", "80"),
        ("pg-1", "--percent", "20", *WATCHFUL),
        ("pg-1", "--percent", "20", "--max-concurrent", "3"),
        ("--all", "--label", "a=b", "--percent", "20"),
    ],
)
def test_one_volume_and_many_are_not_mixed(fake: FakeServices, cistern: Terminal, arguments: tuple[str, ...]) -> None:
    fake.volumes.add(volume_row("pg-1"))
    code, out, err = cistern("volumes", "expand", *arguments)

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert (fake.jobs.rows, fake.bulk.requests) == ({}, [])


def test_growth_that_is_missing_is_refused_by_the_api(fake: FakeServices, cistern: Terminal) -> None:
    code, _, err = cistern("volumes", "expand", "--all")

    assert (code, "growth-required" in err) == (2, True)


@pytest.mark.parametrize("which", ["pg-1", "--all"])
def test_dry_run_prints_the_plan_and_changes_nothing(fake: FakeServices, cistern: Terminal, which: str) -> None:
    fake.volumes.add(volume_row("pg-1", size=GIB))
    code, out, _ = cistern("volumes", "expand", which, "--percent", "20", "--dry-run")

    assert (code, fake.jobs.rows) == (0, {})
    assert "volumes would grow, by " in out.splitlines()[-1]
    plan = json.loads(cistern("volumes", "expand", which, "--percent", "20", "--dry-run", "--json").out)
    assert plan.keys() >= {"total", "grows", "items"}


@pytest.mark.parametrize(("said", "expected"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_delete_asks_a_person_and_says_what_is_lost(
    fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch, said: str, expected: int
) -> None:
    fake.volumes.add(volume_row("pg-1", size=10 * GIB))
    answer(monkeypatch, said)
    code, _, err = cistern("volumes", "delete", "pg-1")

    assert (code, len(fake.jobs.rows)) == (expected, 1 - expected)
    assert err.startswith("Delete the volume pg-1 (10 GiB) and all its data? [y/N]")


def test_delete_without_a_person_needs_yes(fake: FakeServices, cistern: Terminal) -> None:
    fake.volumes.add(volume_row("pg-1"))
    code, out, err = cistern("volumes", "delete", "pg-1")

    assert (code, out, err) == (2, "", "cistern: nobody can be asked for confirmation: add --yes\n")
    assert fake.jobs.rows == {}
    assert cistern("volumes", "delete", "pg-1", "--yes").code == 0


def test_jobs_are_listed_with_the_names_of_their_volumes(fake: FakeServices, cistern: Terminal) -> None:
    volume = fake.volumes.add(volume_row("pg-1"))
    fake.jobs.add(job_row("volume.expand", volume_id=volume.id))
    gone = fake.jobs.add(job_row("volume.delete", volume_id=UUID(int=9)))
    lines = cistern("jobs", "list").out.splitlines()[1:]

    assert [line.split()[3] for line in lines] == [str(gone.volume_id), "pg-1"]
    assert "pg-1" in cistern("jobs", "show", next(iter(fake.jobs.rows)).hex).out
    assert "pg-1" not in cistern("jobs", "list", "--json").out, "it prints what the API returns"


def test_job_is_retried_and_watched(fake: FakeServices, cistern: Terminal) -> None:
    failed = fake.jobs.add(job_row("volume.expand", status=JobStatus.FAILED))
    code, out, _ = cistern("jobs", "retry", failed.id.hex[:16], "--json")

    assert (code, json.loads(out)["retry_of"], json.loads(out)["status"]) == (0, str(failed.id), "succeeded")


def test_interrupted_wait_says_that_the_job_goes_on(
    fake: FakeServices, cistern: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("api.cli.client.ApiClient.changes", interrupt)
    code, _, err = cistern("volumes", "create", "pg-1", "--size", "4096")
    (job_id,) = fake.jobs.rows

    assert (code, f"cistern jobs watch {job_id}" in err) == (130, True)


def test_update_changes_what_is_given(fake: FakeServices, cistern: Terminal) -> None:
    volume = fake.volumes.add(volume_row("pg-1", labels={"team": "search"}))
    policy = ("--usage-above", "80", "--by", "10GiB", "--up-to", "1TiB")

    assert cistern("volumes", "update", "pg-1", *policy).code == 0
    assert volume.autogrow == {"usage_above": 80, "by": 10 * GIB, "up_to": 1024 * GIB}
    assert (volume.name, volume.labels) == ("pg-1", {"team": "search"})
    assert cistern("volumes", "update", "pg-1", *policy, *WATCHFUL).code == 0
    assert volume.autogrow == {
        "usage_above": 80,
        "by": 10 * GIB,
        "up_to": 1024 * GIB,
        "inodes_above": 90,
        "cooldown_seconds": 60,
    }
    assert cistern("volumes", "update", "pg-1", "--name", "pg-2", "--label", "tier=gold").code == 0
    assert (volume.name, volume.labels) == ("pg-2", {"tier": "gold"})
    code, out, _ = cistern("volumes", "update", "pg-2", "--no-autogrow", "--no-labels", "--json")
    assert (code, json.loads(out)["autogrow"], json.loads(out)["labels"]) == (0, None, {})


@pytest.mark.parametrize(
    "options", ["", "--no-labels --label team=a", "--no-autogrow --percent 10", "--usage-above 80 --percent 20"]
)
def test_update_that_does_not_fit_changes_nothing(fake: FakeServices, cistern: Terminal, options: str) -> None:
    volume = fake.volumes.add(volume_row("pg-1", labels={"team": "search"}))
    code, out, err = cistern("volumes", "update", "pg-1", *options.split())

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert (volume.labels, volume.autogrow) == ({"team": "search"}, None)


def test_volume_is_created_from_another_or_from_a_snapshot(fake: FakeServices, cistern: Terminal) -> None:
    source = fake.volumes.add(volume_row("source"))
    snapshot = fake.snapshots.add(snapshot_row(source, "kept"))
    assert cistern("volumes", "create", "two", "--from-snapshot", "source/kept").code == 0
    assert cistern("volumes", "create", "three", "--from-volume", "source", "--allow-torn").code == 0

    first, second = fake.jobs.rows.values()
    assert (first.kind, first.snapshot_id) == ("snapshot.clone", snapshot.id)
    assert (second.kind, second.params["allow_torn"]) == ("volume.clone", True)


def test_volume_without_size_or_source_is_refused(fake: FakeServices, cistern: Terminal) -> None:
    code, _, err = cistern("volumes", "create", "two")

    assert (code, "--from-volume" in err, fake.jobs.rows) == (2, True, {})
