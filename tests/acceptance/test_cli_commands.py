"""Every command of the command line, as a process, on a real API with a real worker: outcome, exit status, JSON."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from typing import Any, NamedTuple

import pytest

from domain.db.migrations.grants import Part
from tests.acceptance.cluster import ROOT, Cluster
from tests.support.commands import commands, written
from tests.support.keys import SECRET

#: Commands that other tests run: processes that do not end, and what needs storage of its own.
ELSEWHERE = {"up", "serve", "work", "demo", "migrate", "check", "node", "docker-plugin", "csi"}
#: Those that need a node, which the tests of attachments have.
ELSEWHERE |= {"volumes mount", "volumes umount"}


class Ran(NamedTuple):
    """How a command ended, and the objects that it printed."""

    status: int
    objects: list[dict[str, Any]]
    err: str

    @property
    def one(self) -> dict[str, Any]:
        assert len(self.objects) == 1, self
        return self.objects[0]


class Cli:
    """Runs commands, and remembers which."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.used: set[str] = set()

    async def text(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command for a person, without a terminal."""
        command = (sys.executable, "-m", "api.cli", *arguments)
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def __call__(self, line: str) -> Ran:
        """Run a command with --json."""
        words = line.split()
        self.used.add(" ".join(words[:2] if len(words) > 1 and words[0] in GROUPS else words[:1]))
        status, out, err = await self.text(*words, "--json")
        assert "Traceback" not in err
        return Ran(status, [json.loads(one) for one in out.splitlines()], err)


GROUPS = {name for name, subcommands in commands().items() if subcommands}


@pytest.fixture
async def cli(cluster: Cluster) -> Cli:
    """A command line beside an API and a worker."""
    cluster.start_worker()
    url = await asyncio.to_thread(cluster.start_api)
    environment = os.environ | cluster.environment(Part.API) | {"CISTERN_URL": url, "CISTERN_KEY": SECRET.text}
    return Cli(environment)


async def volumes_and_snapshots(cli: Cli) -> None:
    created = await cli("volumes create pg-1 --size 1M --label team=search")
    assert (created.status, created.one["kind"], created.one["status"]) == (0, "volume.create", "succeeded")
    accepted = await cli("volumes create pg-2 --size 1MiB --no-wait")
    assert (accepted.status, accepted.one["kind"]) == (0, "volume.create")
    assert (await cli(f"jobs watch {accepted.one['id'][:30]}")).objects[-1]["status"] == "succeeded"
    assert [one["name"] for one in (await cli("volumes list --label team=search")).objects] == ["pg-1"]

    grown = await cli("volumes expand pg-1 --to 2M")
    assert (grown.status, grown.one["result"]["size"]) == (0, 2 * 2**20)
    plan = await cli("volumes expand --label team=search --percent 50 --dry-run")
    assert (plan.status, plan.one["grows"], plan.one["items"][0]["to_size"]) == (0, 1, 3 * 2**20)
    assert (await cli("volumes expand --label team=search --percent 50")).one["progress"]["succeeded"] == 1
    assert (await cli("volumes show pg-1")).one["size"] == 3 * 2**20
    assert (await cli("volumes expand pg-1 --to 1M")).status == 2

    policy = await cli(
        "volumes update pg-1 --usage-above 80 --percent 20 --up-to 1G --label team=search --label tier=1"
    )
    assert (policy.status, policy.one["labels"]) == (0, {"team": "search", "tier": "1"}), policy
    assert policy.one["autogrow"] == {"usage_above": 80, "percent": 20, "up_to": 2**30}
    assert (await cli("volumes update pg-1 --no-autogrow --name pg-9")).one["autogrow"] is None
    assert (await cli("volumes update pg-9 --name pg-1")).one["labels"] == {"team": "search", "tier": "1"}
    assert (await cli("volumes update pg-1 --usage-above 80")).status == 2, "the policy is not complete"

    assert (await cli("snapshots take pg-1/first")).status == 0
    assert (await cli("snapshots take nightly --all")).one["progress"]["succeeded"] == 2
    assert [one["name"] for one in (await cli("snapshots list --volume pg-1")).objects][-1] == "first"
    assert (await cli("snapshots restore pg-1/first")).status == 2, "nobody can be asked"
    assert (await cli("snapshots restore pg-1/first --yes")).one["status"] == "succeeded"
    assert (await cli("snapshots clone pg-1/first copy")).one["status"] == "succeeded"
    assert (await cli("snapshots delete pg-1/first --yes")).one["status"] == "succeeded"
    assert (await cli("volumes delete pg-1 --yes")).status == 2, "it has snapshots"
    assert (await cli("volumes delete copy --yes")).one["status"] == "succeeded"
    assert {one["name"] for one in (await cli("volumes list")).objects} == {"pg-1", "pg-2"}


async def jobs(cli: Cli) -> None:
    failed = await cli("volumes expand --backend local --to 1MiB --up-to 1MiB --no-wait")
    assert failed.status == 0
    watched = await cli(f"jobs watch {failed.one['id']}")
    assert watched.status == (0 if watched.objects[-1]["status"] == "succeeded" else 1)
    newest = (await cli("jobs list --limit 1")).one
    shown = await cli(f"jobs show {newest['id']}")
    assert (shown.status, shown.one["id"]) == (0, newest["id"])
    for command in ("cancel", "retry"):
        refused = await cli(f"jobs {command} {newest['id']}")
        assert (refused.status, refused.objects, len(refused.err.splitlines())) == (2, [], 1)
    for command in ("cancel-all", "retry-all"):
        assert (await cli(f"jobs {command} --kind volume.create")).status == 2, "nobody can be asked"
        changed = await cli(f"jobs {command} --kind volume.create --hours 1 --yes")
        assert (changed.status, changed.one) == (0, {"accepted": 0, "refused": {}})
    assert (await cli("jobs list --by nobody --hours 1")).objects == []


async def schedules(cli: Cli) -> None:
    create = "schedules create grow --cron 0+0+1+1+* --action bulk.expand --label team=search --by 1M"
    status, out, err = await cli.text(*(word.replace("+", " ") for word in create.split()), "--json")
    cli.used.add("schedules create")
    assert (status, json.loads(out)["params"]["labels"]) == (0, {"team": "search"}), err
    assert (await cli("schedules update grow --percent 10 --usage-above 0.5 --max-concurrent 3")).status == 0
    changed = (await cli("schedules update grow --time-zone Europe/Berlin --catch-up 60")).one
    assert (changed["time_zone"], changed["catch_up_seconds"]) == ("Europe/Berlin", 60)
    assert changed["params"].get("by") is None
    assert {name: changed["params"][name] for name in ("labels", "percent", "usage_above", "max_concurrent")} == {
        "labels": {"team": "search"},
        "percent": 10,
        "usage_above": 0.5,
        "max_concurrent": 3,
    }
    assert (await cli("schedules update grow --keep-last 3")).status == 2, "it takes no snapshots"
    assert (await cli("schedules run grow")).one["status"] == "succeeded"
    assert (await cli("schedules pause grow")).one["enabled"] is False
    assert (await cli("schedules resume grow")).one["enabled"] is True
    assert [run["job_status"] for run in (await cli("schedules list")).one["last_runs"]] == ["succeeded"]
    assert (await cli("schedules delete grow --yes")).status == 0
    assert (await cli("schedules list")).objects == []


async def administration(cli: Cli) -> None:
    assert [one["served"] for one in (await cli("backends")).objects] == [True]
    assert [(one["alive"], one["backends"]) for one in (await cli("workers")).objects] == [(True, ["local"])]
    assert (await cli("attachments")).objects == (await cli("nodes")).objects == []
    assert (await cli("projects create search")).one["name"] == "search"
    assert (await cli("projects limit search --max-bytes 1T")).one["max_bytes"] == 2**40
    assert {one["name"] for one in (await cli("projects list")).objects} == {"default", "search"}
    assert (await cli("keys create backup --role viewer")).one["key"].startswith("cst_")
    assert (await cli("keys rotate backup")).one["name"] == "backup"
    (old, *_) = [one for one in (await cli("keys list")).objects if one["expires_at"] is not None]
    assert (await cli(f"keys revoke {old['id'][:23]} --yes")).one["revoked_at"] is not None
    assert (await cli("audit --action volume.delete")).one["action"] == "volume.delete"
    examined = await cli("doctor")
    assert (examined.status, {one["state"] for one in examined.objects}) == (0, {"ok"}), examined


@pytest.mark.slow
async def test_every_command_does_what_it_says(cli: Cli) -> None:
    await volumes_and_snapshots(cli)
    await jobs(cli)
    await schedules(cli)
    await administration(cli)

    assert cli.used == written() - ELSEWHERE


async def test_job_is_cancelled_and_repeated(cluster: Cluster) -> None:
    cluster.start_worker(url=cluster.url(gate=cluster.gate()))
    url = await asyncio.to_thread(cluster.start_api)
    cli = Cli(os.environ | {"CISTERN_URL": url, "CISTERN_KEY": SECRET.text})
    await cli("volumes create pg-1 --size 1M")
    cluster.gate().touch()
    running = (await cli("volumes expand pg-1 --by 1M --no-wait")).one
    assert (await cli(f"jobs cancel {running['id']}")).status == 0
    cluster.gate().unlink()
    ended = await cli(f"jobs watch {running['id']}")

    assert ended.objects[-1]["status"] in {"cancelled", "succeeded"}
    if ended.objects[-1]["status"] == "cancelled":
        assert ended.status == 1
        assert (await cli(f"jobs retry {running['id']}")).one["status"] == "succeeded"


async def test_tables_are_for_people(cli: Cli) -> None:
    assert (await cli.text("volumes", "create", "pg-1", "--size", "1M"))[0] == 0
    for words in (("volumes", "list"), ("volumes", "show", "pg-1"), ("jobs", "list"), ("workers",), ("backends",)):
        status, out, err = await cli.text(*words)
        assert (status, err) == (0, "")
        assert out
    assert "1 MiB" in (await cli.text("volumes", "list"))[1]
    status, out, err = await cli.text("volumes", "show", "nobody")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
