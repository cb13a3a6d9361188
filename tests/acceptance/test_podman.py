"""Podman uses volumes of Cistern through the volume plugin. The API is a stand-in whose attachments are directories."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from api.docker_plugin.attachments import PODMAN_ID
from tests.support.attachment_api import AttachmentApi, serve
from tests.support.docker_plugin import Engine, plugin

CONTAINERS_CONF = Path(os.environ.get("CONTAINERS_CONF", "/etc/containers/containers.conf"))
HOLDERS = [f"docker:{PODMAN_ID}"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed (apt-get install podman)"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: the socket of the plugin is root's"),
]


class Podman:
    """Podman with a storage and settings of its own."""

    def __init__(self, directory: Path, socket: Path) -> None:
        settings = CONTAINERS_CONF.read_text() if CONTAINERS_CONF.exists() else ""
        self._conf = directory / "containers.conf"
        self._conf.write_text(f'{settings}\n[engine.volume_plugins]\ncistern = "{socket}"\n')
        self._options = [f"--root={directory}/root", f"--runroot={directory}/run", f"--tmpdir={directory}/tmp"]
        self._options.append("--storage-driver=vfs")

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "CONTAINERS_CONF": str(self._conf)}
        command = ["podman", *self._options, *arguments]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)

    def run(self, *arguments: str) -> str:
        """Run a command, which must succeed, and return its output."""
        done = self.start(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def shell(self, volume: str, script: str) -> str:
        """Run a script in a container that has a volume at /data."""
        return self.run("run", "--rm", "--network=none", f"--volume={volume}:/data", "shell", "/bin/sh", "-c", script)

    def error(self, *arguments: str) -> str:
        done = self.start(*arguments)
        assert done.returncode != 0
        return done.stderr


def make_image(directory: Path) -> Path:
    """Write an image that has nothing but a shell, `cat`, `sleep`, and the libraries that they need."""
    root = directory / "image"
    for program in ("sh", "cat", "sleep"):
        file = Path(shutil.which(program) or "").resolve()
        words = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout.split()
        for source, target in [(file, f"/bin/{program}"), *((Path(one), one) for one in words if one.startswith("/"))]:
            copy = root / target.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    return archive


@pytest.fixture
def api(tmp_path: Path) -> AttachmentApi:
    (tmp_path / "mounts").mkdir()
    return AttachmentApi(tmp_path / "mounts")


@pytest.fixture
def engine(api: AttachmentApi, tmp_path: Path) -> Iterator[Engine]:
    with serve(api) as url, plugin(url, tmp_path) as engine:
        yield engine


@pytest.fixture
def podman(engine: Engine, tmp_path: Path) -> Iterator[Podman]:
    with TemporaryDirectory(prefix="podman-") as directory:  # podman wants a short path
        podman = Podman(Path(directory), engine.path)
        imported = podman.start("import", str(make_image(tmp_path)), "shell")
        if imported.returncode != 0:
            pytest.skip(f"podman does not work here: {imported.stderr}")
        try:
            yield podman
        finally:
            podman.run("rm", "--all", "--force", "--time=0")
            podman.run("volume", "rm", "--all", "--force")
            podman.run("rmi", "--all", "--force")


def test_containers_share_a_volume_from_its_creation_to_its_removal(podman: Podman, api: AttachmentApi) -> None:
    options = ["-o", "size=10GiB", "-o", "filesystem=xfs", "-o", "autogrow=80:20%:1TiB"]
    podman.run("volume", "create", "--driver=cistern", *options, "data")
    (volume,) = api.volumes.values()
    assert (volume["name"], volume["size"], volume["filesystem"]) == ("data", 10 << 30, "xfs")

    podman.shell("data", "echo one > /data/records")
    assert api.holders("data") == []
    script = "echo two >> /data/records; exec /bin/sleep 60"
    podman.run("run", "-d", "--network=none", "--name=writer", "--volume=data:/data", "shell", "/bin/sh", "-c", script)
    assert api.holders("data") == HOLDERS

    assert podman.shell("data", "cat /data/records").splitlines()[0] == "one"
    assert api.holders("data") == HOLDERS  # of the writer, which still runs or has to be removed
    (inspected,) = json.loads(podman.run("volume", "inspect", "data"))
    assert inspected["Mountpoint"] == str(api.root / volume["id"])
    assert inspected["Status"]["filesystem"] == "xfs"
    assert "being used" in podman.error("volume", "rm", "data")

    podman.run("rm", "--force", "--time=0", "writer")
    assert api.holders("data") == []
    assert (api.root / volume["id"] / "records").read_text() == "one\ntwo\n"
    podman.run("volume", "rm", "data")
    assert api.volumes == {}


def test_volume_that_exists_is_used_as_it_is(podman: Podman, api: AttachmentApi) -> None:
    api.add_volume("data", size=20 << 30)
    podman.run("volume", "create", "--driver=cistern", "data")
    podman.shell("data", "echo one > /data/records")

    assert api.bodies("POST", "/volumes") == []


def test_invalid_option_is_named(podman: Podman, api: AttachmentApi) -> None:
    error = podman.error("volume", "create", "--driver=cistern", "-o", "sise=10GiB", "data")

    assert "unknown option 'sise'" in error
    assert api.volumes == {}


def test_containers_that_start_at_once_share_a_volume(podman: Podman, api: AttachmentApi) -> None:
    podman.run("volume", "create", "--driver=cistern", "-o", "size=1GiB", "data")
    scripts = [f"echo one > /data/{number}" for number in range(3)]
    threads = [threading.Thread(target=podman.shell, args=["data", script]) for script in scripts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    (volume,) = api.volumes.values()
    assert sorted(one.name for one in (api.root / volume["id"]).iterdir()) == ["0", "1", "2"]
    assert api.holders("data") == []


def test_volume_that_another_node_has_is_an_error_with_who_and_where(podman: Podman, api: AttachmentApi) -> None:
    podman.run("volume", "create", "--driver=cistern", "-o", "size=1GiB", "data")
    (volume,) = api.volumes.values()
    attachment = api.add_attachment(volume, "there", "docker:c9")

    error = podman.error("run", "--rm", "--network=none", "--volume=data:/data", "shell", "/bin/sh", "-c", "true")
    assert "attached on node there by docker:c9" in error
    del api.attachments[attachment["id"]]
