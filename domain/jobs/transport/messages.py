"""What a message looks like: arq's form, with (job id, ring) in it as JSON and nothing else."""

import json
import re
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from arq.jobs import serialize_job

from domain.jobs.model import Dispatch

#: The only function that arq knows, under a name that never changes.
FUNCTION_NAME: Final = "run_job"
#: More than that PostgreSQL cannot count; a message may say anything.
_MAX_EPOCH: Final = 2**63 - 1

#: A message of ours, letter by letter: reading it as JSON takes ten times as long.
_MESSAGE: Final = re.compile(
    rb'\{"t": null, "f": "%b", "a": \["([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", (0|[1-9][0-9]{0,18})\], '
    rb'"k": \{\}, "et": [0-9]+\}' % FUNCTION_NAME.encode()
)

serialize: Callable[[dict[str, Any]], bytes] = lambda message: json.dumps(message).encode()  # noqa: E731
deserialize: Callable[[bytes], dict[str, Any]] = json.loads


def message_id(dispatch: Dispatch) -> str:
    """The arq id of a ring: never used for two things, so that the same ring twice is one message."""
    return f"{dispatch.job_id}:{dispatch.epoch}"


def write_message(dispatch: Dispatch, *, sent_ms: int) -> bytes:
    """Put a ring into the form that arq's own producer would; ``sent_ms``: when, in milliseconds."""
    return serialize_job(FUNCTION_NAME, (str(dispatch.job_id), dispatch.epoch), {}, None, sent_ms, serializer=serialize)


def read_message(identity: bytes, message: bytes | None) -> Dispatch | None:
    """Read what `write_message` wrote, under the id that belongs to it; None for any other message, or none at all."""
    match = _MESSAGE.fullmatch(message or b"")
    if match is None or b"%b:%b" % match.groups() != identity:
        return None
    epoch = int(match[2])
    return Dispatch(UUID(match[1].decode()), epoch) if epoch <= _MAX_EPOCH else None


def dispatch_from(job_id: str, epoch: int) -> Dispatch:
    """Make a ring of what arq has read in a message.

    Raises:
        ValueError: there can be no such ring.
    """
    if type(epoch) is not int or not 0 <= epoch <= _MAX_EPOCH:
        raise ValueError(f"no job was ever rung so often: {epoch}")
    return Dispatch(UUID(job_id), epoch)
