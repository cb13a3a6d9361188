"""Mutation tests: remove one guard at a time from a copy of the project; the tests listed for it must fail.

The listed tests must pass on an unchanged copy, and each of them must fail, by an assertion or an error of its own, on
the mutated one. Prints a table; the exit status is 1 if a mutation is not noticed or does not apply.

    python -m tests.mutation                     run all mutations
    python -m tests.mutation NAME ...            run these
    python -m tests.mutation --changed [BASE]    run those whose file differs from BASE in the working tree

BASE is a revision. Default: origin/main; HEAD~1 if that does not exist or is HEAD; all mutations if there is neither.
"""

import argparse
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

from tests.mutation.mutation import Mutation
from tests.mutation.mutations import MUTATIONS

ROOT: Final = Path(__file__).parents[2]
#: pytest's exit status for "tests were run, and some failed".
_TESTS_FAILED: Final = 1
_MAX_CONCURRENT: Final = 2
_DEFAULT_BASES: Final = ("origin/main", "HEAD~1")


def main(arguments: Sequence[str]) -> int:
    chosen = choose(arguments)
    if not chosen:
        report("No mutated file differs from the base.")
        return 0
    with project_copy() as copy:
        status, output = run_tests(copy, dict.fromkeys(test for mutation in chosen for test in mutation.tests))
    if status != 0:
        report(f"{output}\nThe tests fail on the unchanged project.")
        return 1
    with ThreadPoolExecutor(_MAX_CONCURRENT) as pool:
        verdicts = list(pool.map(try_mutation, chosen))
    survivors = sum(verdict != "noticed" for verdict in verdicts)
    report(f"{len(chosen)} mutations, {survivors} not noticed")
    return min(survivors, 1)


def choose(arguments: Sequence[str]) -> list[Mutation]:
    """Return the mutations that the command line selects."""
    parser = argparse.ArgumentParser(
        usage="python -m tests.mutation [NAME ... | --changed [BASE]]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of mutations")
    parser.add_argument("--changed", nargs="?", const="", metavar="BASE", help="select by changed files instead")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - MUTATIONS.keys():
        parser.error(f"no mutation is named {', '.join(sorted(unknown))}")
    if options.changed is None:
        return [MUTATIONS[name] for name in options.names or MUTATIONS]
    if options.names:
        parser.error("--changed takes no names of mutations")
    changed = changed_files(ROOT, options.changed or default_base(ROOT))
    return [mutation for mutation in MUTATIONS.values() if changed is None or mutation.file in changed]


def changed_files(root: Path, base: str | None) -> set[str] | None:
    """Return the files that differ from a revision in the working tree; None, which means all, without a revision."""
    return None if base is None else set(git(root, "diff", "--name-only", base).splitlines())


def default_base(root: Path) -> str | None:
    """Return the revision to compare with, None if HEAD is the only reachable commit."""
    head = git(root, "rev-parse", "HEAD")
    commits = {base: git(root, "rev-parse", "--verify", "--quiet", base, check=False) for base in _DEFAULT_BASES}
    return next((base for base, commit in commits.items() if commit not in ("", head)), None)


def git(root: Path, *arguments: str, check: bool = True) -> str:
    completed = subprocess.run(["git", *arguments], cwd=root, stdout=subprocess.PIPE, text=True, check=check)
    return completed.stdout.strip()


def try_mutation(mutation: Mutation) -> str:
    """Apply a mutation to a copy of the project, run its tests, and return the verdict."""
    started = time.monotonic()
    with project_copy() as copy:
        verdict = judge(mutation, copy)
    seconds = time.monotonic() - started
    report(f"{mutation.name:32} {verdict.partition(chr(10))[0]:14} {seconds:4.0f} s   {mutation.why}")
    if "\n" in verdict:
        report(verdict)
    return verdict


def judge(mutation: Mutation, copy: Path) -> str:
    if not mutation.applies_to(copy):
        return "does not apply"
    mutation.apply(copy)
    status, output = run_tests(copy, mutation.tests)
    failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
    passed = [test for test in mutation.tests if not any(name.startswith(test) for name in failed)]
    if status == _TESTS_FAILED and not passed:
        return "noticed"
    return f"SURVIVED\npytest ended with {status}; not noticed by {passed}\n{output[-2000:]}"


def run_tests(copy: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Run tests in a copy; return pytest's exit status and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--tb=line", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "CISTERN_TEST_HASTY": "1", "COLUMNS": "1000"}
    completed = subprocess.run(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return completed.returncode, completed.stdout


@contextmanager
def project_copy() -> Iterator[Path]:
    """Copy the project without the files that git ignores; remove the copy at the end."""
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    with tempfile.TemporaryDirectory(prefix="cistern-mutation-") as folder:
        for name in names:
            if (ROOT / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                copy2(ROOT / name, Path(folder) / name)
        yield Path(folder)


def report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
