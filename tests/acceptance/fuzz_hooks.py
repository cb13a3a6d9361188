"""What schemathesis must be told about Cistern; it imports this module itself (SCHEMATHESIS_HOOKS).

Left alone it makes up ids, and nearly all that it asks for is not there. So most good ids are replaced by those of
things that were made before, most new names by unique ones, and good keys, which are small and repeat, by unique keys.
"""

import itertools
import re
from collections import defaultdict, deque
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

import schemathesis

KEY: Final = "Idempotency-Key"
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
KINDS: Final = {
    "volumes": "volume_id",
    "snapshots": "snapshot_id",
    "jobs": "job_id",
    "schedules": "schedule_id",
}

_turns = itertools.count()
_seen: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=50))


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """Lead the request to something that is there, three times out of four."""
    turn = next(_turns)
    headers = case.headers or {}
    key = headers.get(KEY)
    if isinstance(key, str) and PLAIN.fullmatch(key):
        headers[KEY] = f"{key}-{turn}"
    if turn % 4 == 0:
        return
    _name_what_is_there(case.path_parameters or {}, turn)
    if isinstance(case.body, dict):
        _name_what_is_there(case.body, turn)
        name = case.body.get("name")
        if case.method == "POST" and isinstance(name, str) and PLAIN.fullmatch(name):
            case.body["name"] = f"{name}-{turn}"


@schemathesis.hook
def after_call(_: Any, case: Any, response: Any) -> None:
    """Remember what there is."""
    if response.status_code in (200, 201, 202) and response.content[:1] == b"{":
        for kind, value in _ids(case.path, response.json()):
            _seen[kind].append(value)


def _name_what_is_there(members: MutableMapping[str, Any], turn: int) -> None:
    for name, value in members.items():
        known = _seen["snapshot_id" if name == "from_snapshot" else name]
        if known and isinstance(value, str) and UUID.fullmatch(value):
            members[name] = known[turn % len(known)]


def _ids(path: str, answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    job = "status" in answer
    own = "job_id" if job else KINDS.get(path.split("/")[3] if path.count("/") > 2 else "", "")
    for name, member in ((own, "id"), ("volume_id", "volume_id"), ("snapshot_id", "snapshot_id")):
        if isinstance(answer.get(member), str):
            yield name, answer[member]
