"""Every error has a stable code and a docstring that is its message, and stands in the tree of its module."""

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
#: Those of the domain; the host of a node has further ones with the codes of these, which are beside it.
EVERY = sorted(
    (kind for kind in family(CisternError) if not kind.__module__.startswith("worker.")),
    key=lambda kind: kind.__qualname__,
)

#: Codes that clients depend on: they may only be added to.
PUBLISHED_CODES = {
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


def names_in_tree(docstring: str | None) -> set[str]:
    """Return the class names in a tree. It follows a blank line, and no other word in it is capitalized."""
    tree = (docstring or "").partition("\n\n")[2]
    return set(re.findall(r"\b[A-Z]\w+", tree))


def defined_in(module: object) -> set[str]:
    return {kind.__name__ for kind in EVERY if inspect.getmodule(kind) is module}


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in EVERY]

    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", EVERY)
def test_each_class_defines_its_own_code_in_lower_case(kind: type[CisternError]) -> None:
    assert "code" in vars(kind)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)


@pytest.mark.parametrize("kind", EVERY)
def test_first_docstring_line_is_a_message(kind: type[CisternError]) -> None:
    first = (kind.__doc__ or "").partition("\n")[0]

    assert re.fullmatch(r"[A-Z].*\.", first)
    assert len(first) < 120


def test_published_codes_still_exist() -> None:
    assert {kind.code for kind in EVERY} >= PUBLISHED_CODES


def test_tree_in_errors_shows_every_error() -> None:
    assert names_in_tree(errors.__doc__) == defined_in(errors)


def test_tree_in_storage_errors_shows_every_storage_error() -> None:
    of_drivers = {kind.__name__ for kind in family(errors.StorageError) if not kind.__module__.startswith("worker.")}
    assert names_in_tree(storage_errors.__doc__) == of_drivers


def test_default_message_is_the_docstring() -> None:
    assert str(ConfigurationError()) == "Cistern cannot start with this configuration."
    assert JobEnded(status="failed").message == "The job has already ended."


def test_details_are_stored_with_the_error() -> None:
    assert JobEnded(status="failed").details == {"status": "failed"}
    assert Invalid("No.", field="size").details == {"field": "size"}


def test_not_found_names_the_missing_id() -> None:
    volume_id = UUID(int=7)

    assert VolumeNotFound(volume_id).message == f"There is no volume with this id. ({volume_id})"


def test_not_found_is_refused_and_unavailable_is_not() -> None:
    assert issubclass(NotFound, errors.Refused)
    assert not issubclass(errors.Unavailable, errors.Refused)
