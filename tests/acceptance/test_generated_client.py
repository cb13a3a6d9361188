"""The client that `make client` generates keeps the types of requests and responses, and works on a real API."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.acceptance.cluster import Cluster
from tests.support.keys import SECRET

PROGRAM = """\
import sys
from cistern_client import AuthenticatedClient
from cistern_client.api.volumes import create_volume, expand_volume, get_volume
from cistern_client.models import GrowthIn, JobOut, VolumeIn, VolumeOut

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2], raise_on_unexpected_status=True)
created = create_volume.sync(client=client, body=VolumeIn(name="typed", size="1MiB"), prefer="wait=30")
assert isinstance(created, JobOut) and created.volume_id is not None, created
expanded = expand_volume.sync(created.volume_id, client=client, body=GrowthIn(by="2MiB"), prefer="wait=30")
volume = get_volume.sync(created.volume_id, client=client)
assert isinstance(expanded, JobOut) and isinstance(volume, VolumeOut), (expanded, volume)
print(expanded.status.value, volume.name, volume.size)
"""
#: What a program without types could do, and a typed client must refuse.
MISTAKE = 'VolumeIn(name="typed", size=[1])\n'


ROOT = Path(__file__).parents[2]
README = ROOT / "clients" / "python" / "README.md"


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)


def install(folder: Path) -> Path:
    """Generate the client as users do and install it from its package. Return the folder to import it from."""
    # -o: another test run must not install Cistern again.
    made = run("make", "-o", ".venv/.ready", "client", f"CLIENT={folder / 'source'}", cwd=ROOT)
    assert made.returncode == 0, made.stdout + made.stderr
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "installed"))
    installed = run(*pip, str(folder / "source"), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "installed"


def program_of_the_readme() -> str:
    (program,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    return str(program)


@pytest.mark.slow
def test_program_with_a_generated_client_is_type_checked_and_runs(cluster: Cluster, tmp_path: Path) -> None:
    place = install(tmp_path)
    (place / "program.py").write_text(PROGRAM)
    (place / "mistaken.py").write_text(PROGRAM + MISTAKE)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", os.devnull)
    checked, mistaken = (run(*mypy, name, cwd=place) for name in ("program.py", "mistaken.py"))
    assert checked.returncode == 0, checked.stdout
    assert 'Argument "size" to "VolumeIn" has incompatible type' in mistaken.stdout

    cluster.start_worker()
    address = cluster.start_api()
    ran = run(sys.executable, "program.py", address, SECRET.text, cwd=place)
    assert (ran.returncode, ran.stdout) == (0, f"succeeded typed {3 * 2**20}\n"), ran.stderr

    (place / "readme.py").write_text(program_of_the_readme())
    ran = run(sys.executable, "readme.py", cwd=place, CISTERN_URL=address, CISTERN_KEY=SECRET.text)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(rf"succeeded \{{.*'size': {10 * 2**20}\b.*\}}\n", ran.stdout), ran.stdout


def test_program_of_the_readme_has_at_most_ten_lines() -> None:
    assert len([line for line in program_of_the_readme().splitlines() if line]) <= 10


def test_client_requires_the_python_and_the_httpx_that_cistern_is_tested_with() -> None:
    cistern, client = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (ROOT, README.parent)
    )

    assert (client["version"], client["requires-python"]) == (cistern["version"], cistern["requires-python"])
    assert [one for one in client["dependencies"] if one.startswith("httpx")] == [
        one for one in cistern["dependencies"] if one.startswith("httpx")
    ]
