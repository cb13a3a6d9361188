"""Podman uses volumes of Cistern through the volume plugin. The API is a stand-in whose attachments are directories."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.docker_plugin.attachments import PODMAN_ID
from tests.support.attachment_api import AttachmentApi, serve
from tests.support.docker_plugin import Engine, plugin
from tests.support.podman import Podman, own_podman

HOLDERS = [f"docker:{PODMAN_ID}"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed (apt-get install podman)"),
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: the socket of the plugin is root's"),
]


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
    with own_podman(engine.path, tmp_path) as podman:
        yield podman


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
