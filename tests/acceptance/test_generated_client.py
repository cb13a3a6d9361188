"""A client generated from the OpenAPI document keeps the types of requests and responses, and works on a real API."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.main import create_app
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


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    folder = Path(sys.executable).parent  # the generator formats its output with the ruff beside it
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_program_with_a_generated_client_is_type_checked_and_runs(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(create_app().openapi()))
    generator = str(Path(sys.executable).with_name("openapi-python-client"))
    options = ("--path", "openapi.json", "--meta", "none", "--output-path", "cistern_client", "--fail-on-warning")
    generated = run(generator, "generate", *options, cwd=tmp_path)
    assert generated.returncode == 0, generated.stdout + generated.stderr

    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mistaken.py").write_text(PROGRAM + MISTAKE)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--config-file", os.devnull)
    checked, mistaken = (run(*mypy, name, cwd=tmp_path) for name in ("program.py", "mistaken.py"))
    assert checked.returncode == 0, checked.stdout
    assert 'Argument "size" to "VolumeIn" has incompatible type' in mistaken.stdout

    cluster.start_worker()
    ran = run(sys.executable, "program.py", cluster.start_api(), SECRET.text, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"succeeded typed {3 * 2**20}\n"), ran.stderr
