"""Mounts and unmounts by Docker and Podman, whose answers may be lost, on a stand-in for the API."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from api.docker_plugin import driver
from api.docker_plugin.attachments import PODMAN_ID
from tests.support.attachment_api import CREATED_AT, AttachmentApi, Refused
from tests.support.docker_plugin import NODE, Engine, plugin
from tests.unit.docker_plugin_fixtures import api as api  # noqa: PLC0414 (a fixture)
from tests.unit.docker_plugin_fixtures import engine as engine  # noqa: PLC0414 (a fixture)
from tests.unit.docker_plugin_fixtures import url as url  # noqa: PLC0414 (a fixture)

GIB = 1 << 30
PODMAN = f"docker:{PODMAN_ID}"


def named(name: str, engine_id: str | None = None) -> dict[str, str]:
    return {"Name": name} if engine_id is None else {"Name": name, "ID": engine_id}


class TestMount:
    def test_volume_is_attached_on_this_node_and_its_path_is_returned(self, engine: Engine, api: AttachmentApi) -> None:
        volume = api.add_volume("data")

        path = engine.mount("data", "c1")

        assert path == str(api.root / volume["id"])
        body = {"node": NODE, "holder": "docker:c1", "mode": "rw"}
        assert api.bodies("POST", f"/volumes/{volume['id']}/attachments") == [body]
        assert engine.call("VolumeDriver.Path", named("data")) == {"Mountpoint": path}
        engine.unmount("data", "c1")
        assert api.holders("data") == []
        assert engine.call("VolumeDriver.Path", named("data")) == {"Mountpoint": ""}

    def test_mount_waits_for_the_creation(
        self, engine: Engine, api: AttachmentApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "CREATE_SECONDS", 0)
        api.held.add("volume.create")
        engine.create("data", size="1GiB")
        with ThreadPoolExecutor() as pool:
            mounted = pool.submit(engine.mount, "data", "c1")
            api.wait_for(lambda: api.count("POST", "/attachments") == 1)
            api.finish("volume.create")
            mounted.result()

        assert api.holders("data") == ["docker:c1"]

    def test_two_mounts_at_once_succeed(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        api.held.add("volume.attach")
        with ThreadPoolExecutor() as pool:
            both = [pool.submit(engine.mount, "data", one) for one in ("c1", "c2")]
            api.wait_for(lambda: bool(api.jobs))
            api.finish("volume.attach")
            assert len({one.result() for one in both}) == 1

        assert api.holders("data") == ["docker:c1", "docker:c2"]

    def test_mounts_of_two_plugins_at_once_succeed(self, url: str, tmp_path: Path, api: AttachmentApi) -> None:
        api.add_volume("data")
        api.held.add("volume.attach")
        (tmp_path / "other").mkdir()
        with plugin(url, tmp_path) as one, plugin(url, tmp_path / "other") as other, ThreadPoolExecutor() as pool:
            both = [pool.submit(one.mount, "data", "c1"), pool.submit(other.mount, "data", "c2")]
            api.wait_for(lambda: api.count("POST", "/attachments") == 2)
            api.finish("volume.attach")
            for mounted in both:
                mounted.result()

        assert api.holders("data") == ["docker:c1", "docker:c2"]

    def test_volume_stays_until_the_last_mount_with_an_id_has_ended(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        engine.mount("data", "c1")
        engine.mount("data", "c1")  # `docker cp`

        engine.unmount("data", "c1")
        assert api.holders("data") == ["docker:c1"]
        engine.unmount("data", "c1")
        assert api.holders("data") == []

    def test_count_of_mounts_outlives_the_plugin(self, url: str, tmp_path: Path, api: AttachmentApi) -> None:
        api.add_volume("data")
        with plugin(url, tmp_path) as engine:
            for _ in range(3):
                engine.mount("data", "c1")
        for _ in range(2):
            with plugin(url, tmp_path) as engine:
                engine.unmount("data", "c1")
                assert api.holders("data") == ["docker:c1"]
        with plugin(url, tmp_path) as engine:
            engine.unmount("data", "c1")

        assert api.holders("data") == []

    def test_mounts_of_podman_are_not_counted(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        engine.mount("data", PODMAN_ID)
        engine.mount("data", PODMAN_ID)  # the first answer was lost, or the host was started again

        engine.unmount("data", PODMAN_ID)
        assert api.holders("data") == []

    def test_damaged_counts_are_counts_of_nothing(self, url: str, tmp_path: Path, api: AttachmentApi) -> None:
        api.add_volume("data")
        (tmp_path / "mounts.json").write_text("[[1,")
        with plugin(url, tmp_path) as engine:
            engine.mount("data", "c1")
            engine.unmount("data", "c1")

        assert api.holders("data") == []

    def test_unmount_without_a_mount_is_fine(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        engine.unmount("data", "c1")
        engine.unmount("nothing", "c1")

    def test_mount_of_a_volume_on_another_node_is_an_error_with_who_and_where(
        self, engine: Engine, api: AttachmentApi
    ) -> None:
        api.add_attachment(api.add_volume("data"), "there", "docker:c9")

        assert engine.error("VolumeDriver.Mount", named("data", "c1")) == (
            f"the volume is attached on node there by docker:c9 since {CREATED_AT}: stop what uses it,"
            " `cistern attachments` shows all, and try again"
        )

    def test_mount_of_an_unknown_volume_is_an_error(self, engine: Engine) -> None:
        assert engine.error("VolumeDriver.Mount", named("data", "c1")).startswith("there is no volume data: ")

    def test_mount_on_an_unknown_node_is_an_error_that_says_what_to_start(
        self, engine: Engine, api: AttachmentApi
    ) -> None:
        api.add_volume("data")
        engine.mount("data", "c1")
        api._attach = lambda *_: (_ for _ in ()).throw(Refused(422, "unknown-node", "No such node"))  # type: ignore[method-assign]

        assert "start it, or name another node in CISTERN_NODE" in engine.error(
            "VolumeDriver.Mount", named("data", "c2")
        )

    def test_mount_that_is_not_done_in_time_is_cancelled(
        self, engine: Engine, api: AttachmentApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "MOUNT_SECONDS", 0.3)
        api.add_volume("data")
        api.held.add("volume.attach")

        error = engine.error("VolumeDriver.Mount", named("data", "c1"))
        assert "check that `cistern node` runs there" in error
        assert [job["status"] for job in api.jobs.values()] == ["cancelled"]

    def test_failed_attach_is_an_error_with_its_reason(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        api.failing["volume.attach"] = {"code": "mount-failed", "detail": "bad superblock"}

        assert "(volume.attach) has not succeeded: bad superblock" in engine.error(
            "VolumeDriver.Mount", named("data", "c1")
        )

    def test_mount_of_docker_whose_answer_is_lost_is_undone(self, engine: Engine, api: AttachmentApi) -> None:
        api.add_volume("data")
        api.held.add("volume.attach")
        connection = engine.send("VolumeDriver.Mount", named("data", "c1"))
        api.wait_for(lambda: bool(api.jobs))
        connection.close()
        api.finish("volume.attach")

        api.wait_for(lambda: any(job["kind"] == "volume.detach" for job in api.jobs.values()))
        assert api.holders("data") == []

    def test_mount_of_podman_whose_answer_is_lost_is_repeated_and_does_no_harm(
        self, engine: Engine, api: AttachmentApi
    ) -> None:
        api.add_volume("data")
        api.held.add("volume.attach")
        connection = engine.send("VolumeDriver.Mount", named("data", PODMAN_ID))
        api.wait_for(lambda: bool(api.jobs))
        connection.close()
        with ThreadPoolExecutor() as pool:
            mounted = pool.submit(engine.mount, "data", PODMAN_ID)
            api.finish("volume.attach")
            mounted.result()
        assert "attached on node here" in engine.error("VolumeDriver.Remove", named("data"))

        engine.unmount("data", PODMAN_ID)
        assert api.holders("data") == []
        assert sum(job["kind"] == "volume.detach" for job in api.jobs.values()) == 1

    def test_volume_is_removed_when_the_only_answer_to_a_mount_of_podman_was_lost(
        self, engine: Engine, api: AttachmentApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        undone = Event()
        give_back = driver.VolumeDriver.unanswered_mount

        def signalled(volume_driver: driver.VolumeDriver, name: str, engine_id: str) -> None:
            give_back(volume_driver, name, engine_id)
            undone.set()

        monkeypatch.setattr(driver.VolumeDriver, "unanswered_mount", signalled)
        api.add_volume("data")
        api.held.add("volume.attach")
        connection = engine.send("VolumeDriver.Mount", named("data", PODMAN_ID))
        api.wait_for(lambda: bool(api.jobs))
        connection.close()
        api.finish("volume.attach")
        assert undone.wait(20)
        assert api.holders("data") == [PODMAN]

        engine.call("VolumeDriver.Remove", named("data"))
        assert api.volumes == {}

    def test_unmount_returns_while_the_detach_job_is_at_work(
        self, engine: Engine, api: AttachmentApi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "SHORT_SECONDS", 0.3)
        api.add_volume("data")
        engine.mount("data", PODMAN_ID)
        api.held.add("volume.detach")

        engine.unmount("data", PODMAN_ID)
        with ThreadPoolExecutor() as pool:
            mounted = pool.submit(engine.mount, "data", PODMAN_ID)
            api.wait_for(lambda: api.count("POST", "/attachments") == 2)
            api.finish("volume.detach")
            mounted.result()
        assert api.holders("data") == [PODMAN]
