"""What the image is, and what is not in it."""

import json

from tests.compose.stack import Stack

MEGABYTE = 1_000_000
HOME = "/opt/cistern"
BUILD_TOOLS = ("cc", "c++", "gcc", "g++", "clang", "make", "ld")
SECRETS = (".env", ".git", ".netrc", ".pypirc", "pip.conf", "id_*", "*.key")


def check_image(stack: Stack) -> str:
    """Make sure of it, as one sees it in the API's container, and tell its size."""
    api = stack.container("api")
    assert stack.within(api, "id", "-u").stdout.strip() not in ("", "0")
    assert stack.within(api, "touch", f"{HOME}/mine").returncode != 0, "the program can be changed by itself"
    assert stack.within(api, "touch", "/var/lib/cistern/mine").returncode == 0, "the storage cannot be written"
    assert stack.within(api, "rm", "/var/lib/cistern/mine").returncode == 0
    assert _found(stack, api, *BUILD_TOOLS) == []
    assert stack.within(api, "python", "-c", "import pip").returncode != 0, "pip is in the venv"
    assert stack.within(api, "sh", "-c", "test -e ~root/.cache", user="0").returncode != 0, "pip's cache is there"
    _assert_no_secret(stack, api)
    return f"{_megabytes(stack)}; not root, no build tools, no secret"


def _found(stack: Stack, container: str, *programs: str) -> list[str]:
    return stack.within(
        container, "sh", "-c", f"for name in {' '.join(programs)}; do command -v $name; done"
    ).stdout.split()


def _assert_no_secret(stack: Stack, container: str) -> None:
    made = json.dumps(stack.look("image", stack.image)) + stack.ask("history", "--no-trunc", stack.image)
    assert stack.password not in made
    names = " -o ".join(f"-name '{name}'" for name in SECRETS)
    places = f"{HOME} /home /root /var/lib/cistern /src"
    assert stack.within(container, "sh", "-c", f"find {places} \\( {names} \\) 2>/dev/null", user="0").stdout == ""


def _megabytes(stack: Stack) -> str:
    whole = stack.look("image", stack.image)["Size"]
    own = int(stack.within(stack.container("api"), "du", "--summarize", "--bytes", HOME).stdout.split()[0])
    return f"{whole / MEGABYTE:.0f} MB, of which {own / MEGABYTE:.0f} MB are the image's own part"
