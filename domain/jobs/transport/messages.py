"""The format of a message: an arq job, in JSON, with the job id and the epoch as its only arguments."""

import json
import re
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from arq.jobs import serialize_job

from domain.jobs.model import JobMessage

#: The only function registered with arq. The name must never change: messages of other versions carry it.
FUNCTION_NAME: Final = "run_job"
#: The maximum of PostgreSQL's bigint; a message may contain any number.
_MAX_EPOCH: Final = 2**63 - 1

#: The exact bytes of a message of ours: parsing it as JSON takes ten times as long.
_MESSAGE: Final = re.compile(
    rb'\{"t": null, "f": "%b", "a": \["([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", (0|[1-9][0-9]{0,18})\], '
    rb'"k": \{\}, "et": [0-9]+\}' % FUNCTION_NAME.encode()
)

serialize: Callable[[dict[str, Any]], bytes] = lambda message: json.dumps(message).encode()  # noqa: E731
deserialize: Callable[[bytes], dict[str, Any]] = json.loads


def message_id(message: JobMessage) -> str:
    """Return the arq job id of a message; unique per job and epoch, so that a message sent twice is stored once."""
    return f"{message.job_id}:{message.epoch}"


def write_message(message: JobMessage, *, sent_ms: int) -> bytes:
    """Serialize a message as arq's own producer does; ``sent_ms`` is the time in milliseconds."""
    return serialize_job(FUNCTION_NAME, (str(message.job_id), message.epoch), {}, None, sent_ms, serializer=serialize)


def read_message(identity: bytes, data: bytes | None) -> JobMessage | None:
    """Parse a message written by `write_message` under its own id; return None for any other, or for no message."""
    match = _MESSAGE.fullmatch(data or b"")
    if match is None or b"%b:%b" % match.groups() != identity:
        return None
    epoch = int(match[2])
    return JobMessage(UUID(match[1].decode()), epoch) if epoch <= _MAX_EPOCH else None


def message_from(job_id: str, epoch: int) -> JobMessage:
    """Convert the arguments of a message that arq has parsed.

    Raises:
        ValueError: the id or the epoch is invalid.
    """
    if type(epoch) is not int or not 0 <= epoch <= _MAX_EPOCH:
        raise ValueError(f"invalid epoch: {epoch}")
    return JobMessage(UUID(job_id), epoch)
