"""Mount and unmount: attachments of this node, one for each holder."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

import structlog

from api.cli.client import ApiCallFailed, JsonObject
from api.docker_plugin.calls import Calls, Deadline, has_ended, has_succeeded
from api.docker_plugin.errors import PluginError, failure
from api.docker_plugin.mounts import Mounts

HOLDER: Final = "docker:"
#: The id that Podman sends for all containers: it counts them itself, mounts before the first and unmounts after the
#: last one. A repeated mount is one whose answer was lost, or the first after a restart of the host.
PODMAN_ID: Final = "2f73349cfc4630255319c6c8dfc1b46a8996ace9d14d8e07563b165915918ec2"

log = structlog.stdlib.get_logger()


class Attachments:
    """The attachments of volumes on this node that containers hold."""

    def __init__(self, calls: Calls, mounts: Mounts, node: str) -> None:
        """Take the API, what is mounted, and the name of this node."""
        self._calls = calls
        self._mounts = mounts
        self._node = node
        self._locks = defaultdict[str, Lock](Lock)

    def attach(self, deadline: Deadline, find: Callable[[], JsonObject], name: str, engine_id: str) -> str:
        """Attach a volume for a holder, count it, and return the path.

        Raises:
            PluginError: it is not attached; a job that is still at work is cancelled.
        """
        holder = HOLDER + engine_id
        with self._only_one(name, deadline):
            path = f"/volumes/{find()['id']}/attachments"
            job = self._calls.change(deadline, "POST", path, {"node": self._node, "holder": holder, "mode": "rw"})
            if not has_ended(job):
                self._calls.cancel(job["id"])
                raise PluginError(
                    f"volume {name} is still not attached on node {self._node}, job {job['id']} is {job['status']}:"
                    f" check that `cistern node` runs there, and try again"
                )
            if not has_succeeded(job):
                raise PluginError(f"{failure(job)}; `cistern jobs show {job['id']}` shows more")
            mountpoint = str(job["result"]["path"])
            self._mounts.add(name, holder, mountpoint)
            return mountpoint

    def detach(self, deadline: Deadline, find: Callable[[], JsonObject | None], name: str, engine_id: str) -> None:
        """Take a mount of a holder off, and detach after its last one; a holder without an attachment is fine."""
        holder = HOLDER + engine_id
        with self._only_one(name, deadline):
            if self._mounts.remove(name, holder, every=engine_id == PODMAN_ID):
                return
            volume = find()
            if volume is not None:
                for attachment in self._here(deadline, volume_id=volume["id"], holder=holder):
                    self._detach(deadline, attachment)

    def give_back(self, deadline: Deadline, find: Callable[[], JsonObject | None], name: str, engine_id: str) -> None:
        """Undo a mount whose answer has not arrived.

        Docker will not come back with this id. Podman has one for all, and may be on its way with the next request.
        """
        if engine_id == PODMAN_ID:
            self._mounts.remove(name, HOLDER + engine_id)
        else:
            self.detach(deadline, find, name, engine_id)

    def detach_leftovers(self, deadline: Deadline, volume: JsonObject) -> None:
        """Detach holders of this node that have no mount any more: the answers to their mounts were lost."""
        with self._only_one(volume["name"], deadline):
            for attachment in self._here(deadline, volume_id=volume["id"]):
                holder = attachment["holder"]
                if holder.startswith(HOLDER) and self._mounts.path(volume["name"], holder) is None:
                    self._detach(deadline, attachment)

    def mountpoints(self, deadline: Deadline, **filters: str) -> dict[str, str]:
        """Return the path of each volume that this node has, by its id; one of a container comes before others."""
        found = dict[str, str]()
        for one in sorted(self._here(deadline, **filters), key=lambda one: str(one["holder"]).startswith(HOLDER)):
            path = one["path"] or self._mounts.path(one["volume_name"], one["holder"])
            if path is not None:
                found[one["volume_id"]] = path
        return found

    def _here(self, deadline: Deadline, **filters: str) -> list[JsonObject]:
        """Return attachments of this node, of one volume or of all."""
        return self._calls.list_all(deadline, "/attachments", node=self._node, **filters)

    def _detach(self, deadline: Deadline, attachment: JsonObject) -> None:
        path = f"/volumes/{attachment['volume_id']}/attachments/{attachment['id']}"
        try:
            job = self._calls.change(deadline, "DELETE", path)
        except ApiCallFailed as error:
            if error.problem_code.endswith("-not-found"):
                return
            raise
        if not has_ended(job):  # it is accepted and will not be lost: the next mount or removal waits for it
            log.warning("plugin.detach_continues", volume=attachment["volume_name"], job_id=job["id"])
        elif not has_succeeded(job):
            raise PluginError(f"{failure(job)}; stop what uses the volume on node {self._node}, and try again")

    @contextmanager
    def _only_one(self, name: str, deadline: Deadline) -> Iterator[None]:
        """Let one thread at a time change a volume's attachments: mounts and attachments must agree."""
        lock = self._locks[name]
        if not lock.acquire(timeout=deadline.seconds_left):
            raise PluginError(f"another request for volume {name} is still at work: try again in a moment")
        try:
            yield
        finally:
            lock.release()
