"""Two projects send any requests in any order, with ids of either: no answer has anything of the other."""

import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from domain.services import Services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.project_builders import two_projects

V1: Final = "/api/v1"
UUID_TEXT: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REQUESTS: Final = 150
#: The key of the ids of each list.
LISTS: Final = ("volumes", "snapshots", "jobs", "schedules", "keys")


@dataclass
class Member:
    """A project as it sees itself: its client, its word in all names, and the ids and ETags that it was told."""

    http: httpx.AsyncClient
    word: str
    number: int = 0
    ids: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in LISTS})
    secrets: set[str] = field(default_factory=set)

    def name(self) -> str:
        """Return a new name that gives the project away."""
        self.number += 1
        return f"{self.word}-{self.number}"

    def learn(self, answer: httpx.Response) -> None:
        """Remember what only this project may know."""
        is_json = answer.headers.get("content-type") == "application/json" and answer.content
        body = answer.json() if is_json else {}
        for one in body.get("items", [body]):
            for kind, id_ in _ids(one):
                if id_ not in self.ids[kind]:
                    self.ids[kind].append(id_)
                    self.secrets.add(id_)
        if tag := answer.headers.get("etag"):
            self.secrets.add(tag.strip('"'))


def _ids(body: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the ids in an object, each with the list in which it stands."""
    own = {"kind": "jobs", "cron": "schedules", "role": "keys", "labels": "volumes"}
    found = [(list_, body["id"]) for member, list_ in own.items() if member in body and "id" in body]
    named = (("volumes", body.get("volume_id")), ("snapshots", body.get("snapshot_id")), ("jobs", body.get("job_id")))
    return found[:1] + [(kind, id_) for kind, id_ in named if id_]


Action = Callable[[random.Random, Member, dict[str, list[str]]], Awaitable[httpx.Response]]


async def _create(chance: random.Random, me: Member, _: dict[str, list[str]]) -> httpx.Response:
    body = {"name": me.name(), "size": chance.choice(["1MiB", "2MiB"]), "labels": {"team": me.word}}
    keys = chance.choice([{}, {"Idempotency-Key": f"key-{chance.randrange(5)}"}])
    return await me.http.post(f"{V1}/volumes", json=body, headers={**keys, "Prefer": "wait=5"})


async def _create_taken(chance: random.Random, me: Member, _: dict[str, list[str]]) -> httpx.Response:
    """Both use these names."""
    return await me.http.post(f"{V1}/volumes", json={"name": f"common-{chance.randrange(3)}", "size": "1MiB"})


async def _use(chance: random.Random, me: Member, ids: dict[str, list[str]]) -> httpx.Response:
    def pick(name: str) -> str:
        return chance.choice(ids[name] or [str(uuid4())])

    volume, snapshot, job, schedule, key = (pick(name) for name in LISTS)
    method, path, body = chance.choice(
        [
            ("GET", f"volumes/{volume}", None),
            ("PATCH", f"volumes/{volume}", {"labels": {"team": me.word}}),
            ("DELETE", f"volumes/{volume}", None),
            ("POST", f"volumes/{volume}/expand", {"by": "1MiB"}),
            ("POST", f"volumes/{volume}/snapshots", {"name": me.name()}),
            ("GET", f"volumes/{volume}/snapshots", None),
            ("GET", f"snapshots/{snapshot}", None),
            ("DELETE", f"snapshots/{snapshot}", None),
            ("POST", f"snapshots/{snapshot}/restore", None),
            ("POST", "volumes", {"name": me.name(), "from_snapshot": snapshot}),
            ("GET", f"jobs/{job}", None),
            ("GET", f"jobs/{job}/items", None),
            ("GET", f"jobs/{job}/events", None),
            ("POST", f"jobs/{job}/cancel", None),
            ("POST", f"jobs/{job}/retry", None),
            ("GET", f"schedules/{schedule}", None),
            ("GET", f"schedules/{schedule}/runs", None),
            ("POST", f"schedules/{schedule}/run", None),
            ("DELETE", f"schedules/{schedule}", None),
            ("POST", f"keys/{key}/rotate", {}) if key not in ids["keys"][:1] else ("GET", "keys", None),
            ("GET", f"audit?subject_id={volume}", None),
            ("POST", "volumes/expand", {"by": "1MiB", "ids": [volume], "dry_run": chance.random() < 0.5}),
        ]
    )
    return await me.http.request(method, f"{V1}/{path}", json=body, headers={"Prefer": "wait=2"})


async def _in_bulk(chance: random.Random, me: Member, _: dict[str, list[str]]) -> httpx.Response:
    path, body = chance.choice(
        [
            ("volumes/expand", {"by": "1MiB", "dry_run": True}),
            ("volumes/expand", {"by": "1MiB"}),
            ("volumes/snapshots", {"name": me.name()}),
            ("schedules", {"name": me.name(), "cron": "0 2 * * *", "action": "bulk.expand", "params": {"by": 4096}}),
            ("keys", {"name": me.name(), "role": "viewer"}),
        ]
    )
    return await me.http.post(f"{V1}/{path}", json=body)


async def _list(chance: random.Random, me: Member, _: dict[str, list[str]]) -> httpx.Response:
    return await me.http.get(f"{V1}/{chance.choice([*LISTS, 'projects', 'backends'])}", params={"limit": 200})


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_no_answer_has_anything_of_the_other_project(
    services: Services, app: FastAPI, settings: Settings, running_worker: RunningWorker, seed: int
) -> None:
    chance = random.Random(seed)
    async with two_projects(services, app) as (one, other), running_worker(settings):
        members = Member(one, "zebra"), Member(other, "quagga")
        for _ in range(REQUESTS):
            me, you = chance.sample(members, 2)
            action: Action = chance.choice([_create, _create_taken, _use, _use, _use, _in_bulk, _list])
            mine = chance.random() < 0.6
            answer = await action(chance, me, me.ids if mine else you.ids)
            # An answer may repeat what was asked for.
            asked = set() if mine else set(UUID_TEXT.findall(f"{answer.request.url} {answer.request.content!r}"))
            assert answer.status_code < 500, answer.text
            seen = answer.text + str(answer.headers)
            assert not [secret for secret in you.secrets - me.secrets - asked if secret in seen], answer.request.url
            assert you.word not in seen, answer.request.url
            if answer.is_success and not asked:
                me.learn(answer)

    assert all(len(member.ids["volumes"]) > 3 for member in members)
