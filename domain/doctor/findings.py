"""The result of one examination."""

import enum
from typing import NamedTuple


class State(enum.StrEnum):
    """How it is: well, worth a look, or broken."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """What was examined, how it is, and what to do about it; nothing if it is well."""

    state: State
    check: str
    detail: str
    remedy: str = ""


def ok(check: str, detail: str) -> Finding:
    """Return the finding that something is well."""
    return Finding(State.OK, check, detail)


def warn(check: str, detail: str, remedy: str) -> Finding:
    """Return the finding that something works, and should be looked at."""
    return Finding(State.WARN, check, detail, remedy)


def fail(check: str, detail: str, remedy: str) -> Finding:
    """Return the finding that something does not work."""
    return Finding(State.FAIL, check, detail, remedy)
