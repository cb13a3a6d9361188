"""How much CPU time the command line takes until it does something; printed with -s."""

import os
import resource
import subprocess
import sys

import pytest

#: Seconds; an eighth of one on an idle machine.
LIMIT = 0.5


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "api.cli", *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments", ["--help", "--version", "volumes --help", "volumes list --url http://127.0.0.1:1"]
)
def test_command_starts_within_half_a_second_of_cpu_time(arguments: str) -> None:
    fastest = min(cpu_seconds(*arguments.split()) for _ in range(3))
    print(f"cistern {arguments}: {fastest:.3f} s of CPU time")  # noqa: T201 (the figure is asked for)

    assert fastest < LIMIT


@pytest.mark.parametrize("arguments", ["--help", "volumes --help", "volumes list --url http://127.0.0.1:1"])
def test_client_command_imports_no_library_of_the_servers(arguments: str) -> None:
    code = f"import sys, atexit; sys.argv[1:] = {arguments.split()!r}; from api.cli.app import main\n"
    heavy = "{'httpx', 'pydantic', 'sqlalchemy', 'asyncio', 'rich', 'fastapi', 'domain.services'}"
    code += f"atexit.register(lambda: print(sorted({heavy} & sys.modules.keys()))); main()"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert printed.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "completed"), [("cistern sna", ["snapshots"]), ("cistern volumes expand --per", ["--percent"])]
)
def test_shell_completes_commands_and_options(words: str, completed: list[str]) -> None:
    number = str(len(words.split()) - 1)
    variables = {"_CISTERN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
    code = "import sys; sys.argv[0] = 'cistern'; from api.cli.app import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, capture_output=True, text=True, check=False
    )

    assert run.stdout.split() == completed
