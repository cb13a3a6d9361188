"""Fixtures of tests of the volume plugin: an engine that calls it, and the stand-in for Cistern's API."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attachment_api import AttachmentApi, serve
from tests.support.docker_plugin import Engine, plugin


@pytest.fixture
def api(tmp_path: Path) -> AttachmentApi:
    return AttachmentApi(tmp_path, page_size=2)


@pytest.fixture
def url(api: AttachmentApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


@pytest.fixture
def engine(url: str, tmp_path: Path) -> Iterator[Engine]:
    with plugin(url, tmp_path) as engine:
        yield engine
