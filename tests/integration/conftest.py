"""What integration tests may ask for beside the servers."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from domain.settings import Settings
from tests.inside import working as _working
from worker.runner import Runner

Working = Callable[[Settings], AbstractAsyncContextManager[Runner]]


@pytest.fixture
def working() -> Working:
    """A context manager in which a worker works, with the settings given."""
    return _working
