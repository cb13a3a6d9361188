"""Errors explain themselves, by a code that stays and a docstring that is the message; the drawings show them all."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from uuid import UUID

import pytest

import domain
from domain import errors
from domain.errors import CisternError, ConfigurationError, Invalid, JobEnded, NotFound, VolumeNotFound
from domain.storage import errors as storage_errors


def _import_the_domain() -> None:
    for module in pkgutil.walk_packages(domain.__path__, "domain."):
        if not module.name.startswith("domain.db.migrations."):  # Alembic's scripts run when they are imported
            importlib.import_module(module.name)


def family(parent: type[CisternError]) -> Iterator[type[CisternError]]:
    yield parent
    for child in parent.__subclasses__():
        yield from family(child)


_import_the_domain()
EVERY = sorted(family(CisternError), key=lambda kind: kind.__qualname__)

RELIED_UPON = {
    "refused",
    "not-found",
    "volume-not-found",
    "snapshot-not-found",
    "job-not-found",
    "schedule-not-found",
    "invalid",
    "shrink-refused",
    "size-limit-exceeded",
    "unknown-backend",
    "bad-cursor",
    "conflict",
    "volume-busy",
    "volume-unusable",
    "name-taken",
    "schedule-busy",
    "job-ended",
    "job-not-retryable",
    "storage-error",
    "storage-unavailable",
    "storage-busy",
    "storage-refused",
    "storage-full",
    "size-unsupported",
    "storage-denied",
    "volume-missing",
    "fence-refused",
    "stopped",
}


def drawn(docstring: str | None) -> set[str]:
    """Find the names in a tree, which follows a blank line; nothing else in it has a capital."""
    tree = (docstring or "").partition("\n\n")[2]
    return set(re.findall(r"\b[A-Z]\w+", tree))


def defined_in(module: object) -> set[str]:
    return {kind.__name__ for kind in EVERY if inspect.getmodule(kind) is module}


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in EVERY]

    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", EVERY)
def test_a_code_is_a_word_of_its_own_in_lower_case(kind: type[CisternError]) -> None:
    assert "code" in vars(kind)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)


@pytest.mark.parametrize("kind", EVERY)
def test_a_docstring_reads_as_a_message(kind: type[CisternError]) -> None:
    first = (kind.__doc__ or "").partition("\n")[0]

    assert re.fullmatch(r"[A-Z].*\.", first)
    assert len(first) < 120


def test_the_codes_that_clients_rely_on_stay() -> None:
    assert {kind.code for kind in EVERY} >= RELIED_UPON


def test_the_drawing_in_errors_shows_what_is_there() -> None:
    assert drawn(errors.__doc__) == defined_in(errors)


def test_the_drawing_in_storage_errors_shows_every_storage_error() -> None:
    assert drawn(storage_errors.__doc__) == {kind.__name__ for kind in family(errors.StorageError)}


def test_without_words_of_its_own_an_error_says_its_docstring() -> None:
    assert str(ConfigurationError()) == "Cistern cannot start with this configuration."
    assert JobEnded(status="failed").message == "The job has already ended."


def test_details_travel_with_the_error() -> None:
    assert JobEnded(status="failed").details == {"status": "failed"}
    assert Invalid("No.", field="size").details == {"field": "size"}


def test_not_found_names_what_was_looked_for() -> None:
    wanted = UUID(int=7)

    assert VolumeNotFound(wanted).message == f"There is no volume with this id. ({wanted})"


def test_not_found_is_refused_and_not_a_failure_of_ours() -> None:
    assert issubclass(NotFound, errors.Refused)
    assert not issubclass(errors.Unavailable, errors.Refused)
