"""Fixtures for tests with real processes, which are killed at the end of each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.settings import Settings
from tests.acceptance.cluster import ROOT, Cluster
from tests.acceptance.report import Report
from tests.acceptance.scale import LONG


@pytest.fixture
def cluster(settings: Settings, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(settings.model_copy(update={"lease_seconds": 1.5}), tmp_path)
    cluster.settings = cluster.settings.model_copy(update={"backends": {"local": cluster.url()}})
    try:
        yield cluster
    finally:
        cluster.clear()


@pytest.fixture(scope="session")
def report() -> Report:
    """The report that the long storms write to build/faults.md."""
    return Report(ROOT / "build" / "faults.md" if LONG else None)
