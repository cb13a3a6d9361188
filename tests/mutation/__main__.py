"""Takes one guard at a time out of a copy of the project, and sees whether the tests named beside it notice.

``python -m tests.mutation [NAME ...]`` prints a table, and ends with 1 if a mutation lives on, or cannot be made.
Each of the tests named must pass on an untouched copy, and fail by an assertion or an error of its own on the mutated.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import copy2
from typing import Final

from tests.mutation.mutations import MUTATIONS, Mutation

ROOT: Final = Path(__file__).parents[1]
#: pytest's own word for "tests were run, and some failed".
_SOME_FAILED: Final = 1
_AT_ONCE: Final = 2


def main(names: Sequence[str]) -> int:
    chosen = list(MUTATIONS.values()) if not names else [MUTATIONS[name] for name in names]
    with copied() as copy:
        status, output = run(copy, dict.fromkeys(test for mutation in chosen for test in mutation.tests))
    if status != 0:
        say(f"{output}\nThe tests fail on the project as it is.")
        return 1
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        verdicts = list(pool.map(tried, chosen))
    survivors = sum(verdict != "noticed" for verdict in verdicts)
    say(f"{len(chosen)} mutations, {survivors} not noticed")
    return min(survivors, 1)


def tried(mutation: Mutation) -> str:
    """Make a mutation and say what the tests make of it."""
    began = time.monotonic()
    with copied() as copy:
        verdict = judged(mutation, copy)
    say(f"{mutation.name:32} {verdict.partition(chr(10))[0]:12} {time.monotonic() - began:4.0f} s   {mutation.why}")
    if "\n" in verdict:
        say(verdict)
    return verdict


def judged(mutation: Mutation, copy: Path) -> str:
    if not mutation.applies_to(copy):
        return "out of date"
    mutation.make(copy)
    status, output = run(copy, mutation.tests)
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    blind = [test for test in mutation.tests if not any(name.startswith(test) for name in failed)]
    if status == _SOME_FAILED and not blind:
        return "noticed"
    return f"SURVIVED\npytest ended with {status}; not noticed by {blind}\n{output[-2000:]}"


def run(copy: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests in a copy; returns pytest's exit code and what it said."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--tb=line", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "CISTERN_HASTY": "1", "COLUMNS": "1000"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project, without anything that git does not know of or would not want to."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    with tempfile.TemporaryDirectory(prefix="cistern-mutation-") as folder:
        for name in names:
            if (ROOT / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                copy2(ROOT / name, Path(folder) / name)
        yield Path(folder)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
