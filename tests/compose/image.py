"""Checks of the image: its user, its permissions, and what it must not contain."""

import json

from tests.compose.stack import Stack

MEGABYTE = 1_000_000
HOME = "/opt/cistern"
BUILD_TOOLS = ("cc", "c++", "gcc", "g++", "clang", "make", "ld")
SECRETS = (".env", ".git", ".netrc", ".pypirc", "pip.conf", "id_rsa", "id_ecdsa*", "id_ed25519*", "*.key")


def check_image(stack: Stack) -> str:
    """Check the image inside the API's container, and return a summary with its size."""
    api = stack.container("api")
    assert stack.exec(api, "id", "-u").stdout.strip() not in ("", "0")
    assert stack.exec(api, "touch", f"{HOME}/mine").returncode != 0, "the program can modify its own code"
    assert stack.exec(api, "touch", "/var/lib/cistern/mine").returncode == 0, "the storage is not writable"
    assert stack.exec(api, "rm", "/var/lib/cistern/mine").returncode == 0
    assert _programs_found(stack, api, *BUILD_TOOLS) == []
    assert stack.exec(api, "python", "-c", "import pip").returncode != 0, "pip is in the venv"
    assert stack.exec(api, "sh", "-c", "test -e ~root/.cache", user="0").returncode != 0, "pip's cache is there"
    _assert_no_secret(stack, api)
    return f"{_megabytes(stack)}; not root, no build tools, no secret"


def _programs_found(stack: Stack, container: str, *programs: str) -> list[str]:
    return stack.exec(
        container, "sh", "-c", f"for name in {' '.join(programs)}; do command -v $name; done"
    ).stdout.split()


def _assert_no_secret(stack: Stack, container: str) -> None:
    metadata = json.dumps(stack.inspect("image", stack.image)) + stack.engine_run("history", "--no-trunc", stack.image)
    assert stack.password not in metadata
    names = " -o ".join(f"-name '{name}'" for name in SECRETS)
    folders = f"{HOME} /home /root /var/lib/cistern /src"
    assert stack.exec(container, "sh", "-c", f"find {folders} \\( {names} \\) 2>/dev/null", user="0").stdout == ""


def _megabytes(stack: Stack) -> str:
    total = stack.inspect("image", stack.image)["Size"]
    own = int(stack.exec(stack.container("api"), "du", "--summarize", "--bytes", HOME).stdout.split()[0])
    return f"{total / MEGABYTE:.0f} MB, {own / MEGABYTE:.0f} MB of it in {HOME}"
