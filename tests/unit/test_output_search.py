"""The search of all that tests print: keys and passwords fail the test and are not in its report."""

import subprocess
import sys
from pathlib import Path

import pytest

from domain.access.secret import Secret, new_secret
from tests.support.output_search import (
    PASSWORD,
    redacted,
    require_none_in_command_lines,
    require_none_in_file,
    with_password,
)

ROOT = Path(__file__).parents[2]
CONFTEST = """
from tests.support.output_search import OutputSearch


def pytest_configure(config):
    config.pluginmanager.register(OutputSearch())
"""
#: Tests that print what stands for KEY. Those whose names begin with "clean" must pass.
TESTS = """
import logging, os, subprocess, sys
import pytest

KEY = os.environ["SECRET_OF_TEST"]

@pytest.fixture
def printing_at_the_end():
    yield
    print(KEY)

def test_stdout(): print("Bearer " + KEY + ".")
def test_stderr(): sys.stderr.write(KEY)
def test_log(): logging.getLogger("x").warning("the key is %s", KEY)
def test_process(): subprocess.run(["echo", KEY], check=True)
def test_read_from_process(): subprocess.run(["echo", KEY], capture_output=True, check=True)
def test_read(capsys):
    print(KEY)
    capsys.readouterr()
def test_teardown(printing_at_the_end): pass
def test_failing(): assert KEY == ""
@pytest.mark.prints_key
def clean_test_with_mark(): print(KEY)
def clean_test(): print(KEY[:-1] + ("a" if KEY[-1] != "a" else "b"))
"""


@pytest.fixture
def secret() -> Secret:
    return new_secret()


def test_whatever_prints_a_key_fails_and_its_report_does_not_contain_it(tmp_path: Path, secret: Secret) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_printing.py").write_text(TESTS)
    options = ("-o", "python_functions=test_* clean_*", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-rA")
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path / "test_printing.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "SECRET_OF_TEST": secret.text, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "7 failed, 3 passed, 1 error" in completed.stdout, completed  # one has passed before its fixture prints
    assert secret.text not in completed.stdout + completed.stderr
    assert f"test_stdout has printed the key {secret.proof.public_id}" in completed.stdout


def test_keys_and_passwords_are_found_and_named_without_being_shown(secret: Secret) -> None:
    name = f"the key {secret.proof.public_id}"
    mistyped = secret.text[:-1] + ("a" if secret.text[-1] != "a" else "b")

    assert redacted(f"x{secret.text}") == (f"x[{name}]", {name})
    assert redacted(with_password("unix:///a")) == ("unix://default:[a password]@/a", {"a password"})
    assert redacted(f"{mistyped} {secret.proof}") == (f"{mistyped} {secret.proof}", set())


def test_files_are_searched(tmp_path: Path, secret: Secret) -> None:
    log = tmp_path / "log"
    require_none_in_file(log)
    log.write_bytes(b"\xff" + secret.text.encode())
    with pytest.raises(AssertionError, match=f"log contains the key {secret.proof.public_id}$"):
        require_none_in_file(log)


def test_command_lines_are_searched(secret: Secret) -> None:
    require_none_in_command_lines()
    for text in (secret.text, f"--url=redis://:{PASSWORD}@h"):
        command = [sys.executable, "-c", "input()", text]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            with pytest.raises(AssertionError, match=f"the command line of process {process.pid} contains"):
                require_none_in_command_lines()
            process.communicate(b"\n")
