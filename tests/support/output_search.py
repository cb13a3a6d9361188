"""Searches all that the tests print for keys and passwords: none of them may stand in any output.

A test fails if something that it runs prints one: to stdout, stderr or the log, whether pytest captures it or the test
reads it. Tests that start processes also have log files and command lines searched (`require_none_in_file`,
`require_none_in_command_lines`). A test of a command whose purpose is to print a new key has the mark ``prints_key``.

The private servers of the tests accept any password, so that all URLs in the tests' settings have `PASSWORD`.
"""

import re
import subprocess
from collections.abc import Callable, Generator
from functools import wraps
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from domain.access.secret import proof_of

#: The password in the URLs of the tests' servers.
PASSWORD: Final = "s3cr3t"
_SUSPECT: Final = re.compile(rf"cst_[0-9A-Za-z]{{10}}_[0-9A-Za-z]{{49}}|{PASSWORD}")


def with_password(url: str) -> str:
    """Return the URL of a private server with a password in it."""
    if url.startswith("unix://"):
        return url.replace("unix://", f"unix://default:{PASSWORD}@")
    return url.replace("//postgres@", f"//postgres:{PASSWORD}@")


def redacted(text: str) -> tuple[str, set[str]]:
    """Return a text without keys and passwords, and what was taken out of it, by names that may be printed."""
    found = set[str]()

    def redact(match: re.Match[str]) -> str:
        secret = match[0]
        if secret == PASSWORD:
            name = "a password"
        elif proof := proof_of(secret):
            name = f"the key {proof.public_id}"
        else:
            return secret
        found.add(name)
        return f"[{name}]"

    return _SUSPECT.sub(redact, text), found


def require_none_in_file(path: Path) -> None:
    """Require that a file, if there is one, has no key and no password in it."""
    found = redacted(path.read_text(errors="replace"))[1] if path.is_file() else set()
    assert not found, f"{path} contains {' and '.join(sorted(found))}"


def require_none_in_command_lines() -> None:
    """Require that no process below this one shows a key or a password in its command line."""
    for process in psutil.Process().children(recursive=True):
        try:
            found = redacted(" ".join(process.cmdline()))[1]
        except psutil.NoSuchProcess:
            continue
        assert not found, f"the command line of process {process.pid} contains {' and '.join(sorted(found))}"


class OutputSearch:
    """The plugin of pytest."""

    def __init__(self) -> None:
        self._patches = pytest.MonkeyPatch()
        #: What the current test has read itself, so that pytest does not have it.
        self._read: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        """Begin to note what tests read."""
        config.addinivalue_line("markers", "prints_key: what the test runs is there to print a new key")
        for owner, method in ((pytest.CaptureFixture, "readouterr"), (subprocess.Popen, "communicate")):
            self._patches.setattr(owner, method, self._noting(getattr(owner, method)))

    def pytest_unconfigure(self) -> None:
        """Note nothing any more."""
        self._patches.undo()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail a test that has printed a key or a password, and print neither in its report."""
        report = yield
        found = set[str]()
        for number, (title, text) in enumerate(report.sections):
            clean, names = redacted(text)
            report.sections[number] = (title, clean)
            found |= names if title.endswith(f" {report.when}") else set()
        for text in self._read:
            found |= redacted(text)[1]
        self._read.clear()
        if report.failed:
            clean, names = redacted(report.longreprtext)
            report.longrepr = clean if names else report.longrepr
        elif found and item.get_closest_marker("prints_key") is None:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} has printed {' and '.join(sorted(found))}"
        return report

    def _noting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(read)
        def note(*arguments: Any, **options: Any) -> Any:
            result = read(*arguments, **options)
            self._read += [text if isinstance(text, str) else text.decode(errors="replace") for text in result if text]
            return result

        return note
