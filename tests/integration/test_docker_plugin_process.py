"""The command `cistern docker-plugin`: its socket, its start and its end."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.attachment_api import AttachmentApi, serve
from tests.support.docker_plugin import NODE, Engine


@pytest.fixture
def api(tmp_path: Path) -> AttachmentApi:
    return AttachmentApi(tmp_path)


@pytest.fixture
def url(api: AttachmentApi) -> Iterator[str]:
    with serve(api) as url:
        yield url


def start(url: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "api.cli", "docker-plugin", "--socket", str(path), "--default-size", "1GiB"]
    environment = {**os.environ, "CISTERN_URL": url, "CISTERN_NODE": NODE}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@contextmanager
def running(url: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the plugin, and yield it when it is ready; end it by SIGTERM."""
    process = start(url, path)
    try:
        assert process.stderr is not None
        assert "plugin.ready" in process.stderr.readline()
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
    finally:
        process.kill()
        process.communicate()


def refusal(url: str, path: Path) -> str:
    """Return why the plugin does not start."""
    process = start(url, path)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    return error


def test_plugin_serves_its_socket_for_its_owner_only_and_removes_it_at_sigterm(
    url: str, api: AttachmentApi, tmp_path: Path
) -> None:
    path = tmp_path / "plugins" / "cistern.sock"
    with running(url, path) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        Engine(path).create("data")
        assert Engine(path).mount("data", "c1").startswith(str(tmp_path))
        assert api.holders("data") == ["docker:c1"]

    assert process.returncode == 0
    assert not path.exists()


def test_call_that_waits_is_answered_at_sigterm(url: str, api: AttachmentApi, tmp_path: Path) -> None:
    path = tmp_path / "cistern.sock"
    api.add_volume("data")
    api.held.add("volume.attach")
    with running(url, path) as process:
        connection = Engine(path).send("VolumeDriver.Mount", {"Name": "data", "ID": "c1"})
        api.wait_for(lambda: api.count("POST", "/attachments") == 1)
        process.send_signal(signal.SIGTERM)
        status, answer = Engine(path).answer(connection)

    assert (status, process.returncode) == (500, 0)
    assert answer == {"Err": "The plugin of Cistern is stopping: try again when it has started."}


def test_socket_and_mounts_of_a_killed_plugin_are_taken_over(url: str, api: AttachmentApi, tmp_path: Path) -> None:
    path = tmp_path / "cistern.sock"
    with running(url, path) as process:
        Engine(path).create("data")
        for _ in range(2):
            Engine(path).mount("data", "c1")
        process.kill()
    assert path.is_socket()

    with running(url, path):
        Engine(path).unmount("data", "c1")
        assert api.holders("data") == ["docker:c1"]
        Engine(path).unmount("data", "c1")
        assert api.holders("data") == []


def test_socket_of_a_live_plugin_is_left_alone(url: str, tmp_path: Path) -> None:
    path = tmp_path / "cistern.sock"
    with running(url, path):
        assert "another plugin serves this socket" in refusal(url, path)
        assert Engine(path).call("Plugin.Activate") == {"Implements": ["VolumeDriver"]}


def test_socket_of_another_program_is_left_alone(url: str, tmp_path: Path) -> None:
    path = tmp_path / "cistern.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert "another program serves this socket" in refusal(url, path)
        assert path.is_socket()


def test_file_at_the_path_of_the_socket_is_left_alone(url: str, tmp_path: Path) -> None:
    path = tmp_path / "cistern.sock"
    path.write_text("mine")

    assert "it is no socket, and is left alone" in refusal(url, path)
    assert path.read_text() == "mine"
