"""Hooks that schemathesis imports (SCHEMATHESIS_HOOKS): they steer generated requests towards things that exist.

Generated ids are nearly always unknown. Outside the phase `stateful`, most valid ids are replaced by those of things
that exist. Most new names, and all valid idempotency keys, are made unique.

In the phase `stateful` no id is replaced. There an id comes from an earlier response by a link, and checks compare
the new response with that one: a thing that was just created must exist, a deleted one must not. With another id they
would judge the wrong thing. Names and keys are always made unique there, for two reasons:

1. With the key of an earlier chain, a POST would renumber that chain's thing, which may be gone.
2. Hypothesis ends the phase when the first requests of a chain, sent again, are answered differently.
"""

import itertools
import re
from collections import defaultdict, deque
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

import schemathesis
from schemathesis.generation.meta import TestPhase
from schemathesis.openapi.checks import UseAfterFree

KEY: Final = "Idempotency-Key"
MAX_KEY_LENGTH: Final = 255
VALID_KEY: Final = re.compile(rf"[!-~]([ -~]{{0,{MAX_KEY_LENGTH - 2}}}[!-~])?")
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
KINDS: Final = {
    "volumes": "volume_id",
    "snapshots": "snapshot_id",
    "jobs": "job_id",
    "schedules": "schedule_id",
}

_counter = itertools.count()
_existing: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=50))
#: Ids of DELETE cases that were accepted (202) and whose job had not succeeded yet.
_pending_deletions: set[str] = set()


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """Make names and keys unique, and replace three out of four ids by existing ones."""
    number = next(_counter)
    follows_links = case.meta is not None and case.meta.phase.name is TestPhase.STATEFUL
    _make_key_unique(case.headers or {}, number)
    if follows_links or number % 4:
        _make_name_unique(case, number)
    if not follows_links and number % 4:
        _use_existing_ids(case.path_parameters or {}, number)
        if isinstance(case.body, dict):
            _use_existing_ids(case.body, number)


@schemathesis.hook
def after_call(_: Any, case: Any, response: Any) -> None:
    """Record the ids of things that exist."""
    if response.status_code in (200, 201, 202) and response.content[:1] == b"{":
        answer = response.json()
        for kind, value in _ids(case.path, answer):
            _existing[kind].append(value)
        if case.method == "DELETE" and response.status_code == 202 and answer["status"] != "succeeded":
            _pending_deletions.add(case.id)


@schemathesis.hook
def filter_failure(_: Any, failure: Any, __: Any, ___: Any) -> bool:
    """Ignore `use_after_free` after a DELETE that was only accepted.

    The check treats every 2xx as a deletion, but 202 means that the work is pending (RFC 9110, 15.3.3): the thing may
    exist until the job has succeeded, and stays if the job is cancelled. 204, or 202 with a succeeded job, counts.
    """
    return not (isinstance(failure, UseAfterFree) and failure.deleted_case_id in _pending_deletions)


def _make_key_unique(headers: MutableMapping[str, str], number: int) -> None:
    key = headers.get(KEY)
    if isinstance(key, str) and VALID_KEY.fullmatch(key):
        new = f"-{number}"
        headers[KEY] = key[: MAX_KEY_LENGTH - len(new)] + new


def _make_name_unique(case: Any, number: int) -> None:
    if case.method == "POST" and isinstance(case.body, dict):
        name = case.body.get("name")
        if isinstance(name, str) and PLAIN_NAME.fullmatch(name):
            case.body["name"] = f"{name}-{number}"


def _use_existing_ids(members: MutableMapping[str, Any], number: int) -> None:
    for name, value in members.items():
        known = _existing["snapshot_id" if name == "from_snapshot" else name]
        if known and isinstance(value, str) and UUID.fullmatch(value):
            members[name] = known[number % len(known)]


def _ids(path: str, answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    job = "status" in answer
    own = "job_id" if job else KINDS.get(path.split("/")[3] if path.count("/") > 2 else "", "")
    for name, member in ((own, "id"), ("volume_id", "volume_id"), ("snapshot_id", "snapshot_id")):
        if isinstance(answer.get(member), str):
            yield name, answer[member]
