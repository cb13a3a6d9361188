"""Real processes, each gone at the end of its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.settings import Settings
from tests.acceptance.report import Report
from tests.acceptance.scale import LONG
from tests.acceptance.yard import ROOT, Yard


@pytest.fixture
def yard(settings: Settings, tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(settings.model_copy(update={"lease_seconds": 1.5}), tmp_path)
    yard.settings = yard.settings.model_copy(update={"backends": {"local": yard.url()}})
    try:
        yield yard
    finally:
        yard.clear()


@pytest.fixture(scope="session")
def report() -> Report:
    """A page that the long fault tests leave behind."""
    return Report(ROOT / "build" / "faults.md" if LONG else None)
