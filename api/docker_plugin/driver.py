"""The calls of the volume plugin protocol, on Cistern's volumes that have a file system."""

from functools import partial
from typing import Any, Final
from uuid import uuid4

from api.cli.client import ApiCallFailed, JsonObject
from api.cli.lookup import VOLUME, find_id, find_snapshot_id
from api.docker_plugin.attachments import PODMAN_ID, Attachments
from api.docker_plugin.calls import Calls, Deadline, has_ended, has_succeeded
from api.docker_plugin.errors import PluginError, UnknownVolume, failure
from api.docker_plugin.options import DEFAULT_FILESYSTEM, Options, differences, parse_options
from domain.operations import VolumeState

#: Podman waits 5 s for an answer, Docker two minutes for that to a mount and one minute for others.
SHORT_SECONDS: Final = 4.0
MOUNT_SECONDS: Final = 110.0
UNMOUNT_SECONDS: Final = 50.0
#: A new volume is waited for so long, to report what fails at once; the rest is up to its first mount.
CREATE_SECONDS: Final = 2.0

_STATUS: Final = ("state", "size", "filesystem", "filesystem_size", "filesystem_used", "used", "backend", "labels")


class VolumeDriver:
    """Creates, mounts and removes volumes for the container engines of this node."""

    def __init__(self, calls: Calls, attachments: Attachments, default_size: int | None) -> None:
        """Take the API, the attachments, and the size of volumes that are created without one, if they may be."""
        self._calls = calls
        self._attachments = attachments
        self._default_size = default_size

    def create(self, name: str, options: dict[str, str]) -> None:
        """Create a volume; one that exists is fine if it is as wanted.

        Raises:
            PluginError: an option is invalid, the volume exists and differs, or its creation has failed already.
        """
        deadline = Deadline(SHORT_SECONDS)
        wanted = parse_options(options)
        source = self._source(deadline, wanted)
        volume = self._find(deadline, name)
        if volume is not None and volume["state"] == VolumeState.DELETING:
            self._await_job_of(deadline, volume)
            volume = self._find(deadline, name)
        if volume is None:
            volume = self._create(deadline, name, wanted, source)
        if volume is not None:
            self._require_usable(deadline, name, volume)
            found = [*differences(volume, wanted, source)]
            if found:
                text = "; ".join(found)
                raise PluginError(
                    f"volume {name} exists and differs: {text}: leave these options out, or choose a name"
                )

    def remove(self, name: str) -> None:
        """Delete a volume; one that is gone is fine."""
        deadline = Deadline(SHORT_SECONDS)
        volume = self._find(deadline, name)
        if volume is None:
            return None
        if volume["state"] == VolumeState.DELETING:
            return self._await_job_of(deadline, volume)
        self._require_filesystem(name, volume)
        self._attachments.detach_leftovers(deadline, volume)
        try:
            job = self._calls.change(deadline, "DELETE", f"/volumes/{volume['id']}")
        except ApiCallFailed as error:
            if error.problem_code == "volume-not-found":
                return None
            raise
        return _require_no_failure(job)

    def mount(self, name: str, engine_id: str) -> str:
        """Attach a volume on this node, when its creation has ended, and return its path."""
        deadline = Deadline(MOUNT_SECONDS)
        return self._attachments.attach(deadline, partial(self._require, deadline, name), name, engine_id)

    def unmount(self, name: str, engine_id: str) -> None:
        """Detach a volume after the last mount with this id."""
        deadline = Deadline(SHORT_SECONDS if engine_id == PODMAN_ID else UNMOUNT_SECONDS)
        self._attachments.detach(deadline, partial(self._find, deadline, name), name, engine_id)

    def unanswered_mount(self, name: str, engine_id: str) -> None:
        """Undo a mount whose answer could not be sent."""
        deadline = Deadline(UNMOUNT_SECONDS)
        self._attachments.give_back(deadline, partial(self._find, deadline, name), name, engine_id)

    def path(self, name: str) -> str:
        """Return where a volume is mounted on this node; empty if it is not."""
        deadline = Deadline(SHORT_SECONDS)
        volume = self._require(deadline, name)
        return self._attachments.mountpoints(deadline, volume_id=volume["id"]).get(volume["id"], "")

    def get(self, name: str) -> dict[str, Any]:
        """Return a volume.

        Raises:
            UnknownVolume: there is none.
        """
        deadline = Deadline(SHORT_SECONDS)
        volume = self._require(deadline, name)
        found = self._attachments.mountpoints(deadline, volume_id=volume["id"])
        return {**_described(volume, found), "Status": {member: volume.get(member) for member in _STATUS}}

    def list(self) -> list[dict[str, Any]]:
        """Return all volumes that have a file system."""
        deadline = Deadline(SHORT_SECONDS)
        volumes = self._calls.list_all(deadline, "/volumes")
        found = self._attachments.mountpoints(deadline)
        return [
            _described(volume, found)
            for volume in volumes
            if volume["filesystem"] and volume["state"] != VolumeState.DELETING
        ]

    def _create(self, deadline: Deadline, name: str, wanted: Options, source: JsonObject | None) -> JsonObject | None:
        """Request a new volume; return the one that another client has created meanwhile."""
        size = wanted.size or (None if wanted.has_source else self._default_size)
        if size is None and not wanted.has_source:
            raise PluginError("option size is missing, such as `-o size=10GiB`; the plugin has no --default-size")
        body = {"name": name, "size": size, "backend": wanted.backend, "labels": dict(wanted.labels)}
        if wanted.autogrow is not None:
            body["autogrow"] = wanted.autogrow
        body |= {f"from_{kind.removesuffix('_id')}": one for kind, one in (source or {}).items()}
        filesystem = wanted.filesystem or (None if wanted.has_source else DEFAULT_FILESYSTEM)
        if filesystem is not None:
            body["filesystem"] = filesystem
        headers = {"Idempotency-Key": str(uuid4())}  # of this call: the name is free again after a removal
        try:
            job = self._calls.send(deadline, lambda api: api.call("POST", "/volumes", body, headers=headers))
        except ApiCallFailed as error:
            if error.problem_code == "name-taken":
                return self._find(deadline, name)
            raise
        _require_no_failure(self._calls.job_at_end(Deadline(min(CREATE_SECONDS, deadline.seconds_left)), job["id"]))
        return None

    def _source(self, deadline: Deadline, wanted: Options) -> JsonObject | None:
        """Return what a volume is to be made from, as the API names the source of a volume."""
        if wanted.from_snapshot is not None:
            snapshot = wanted.from_snapshot
            return {"snapshot_id": self._calls.send(deadline, lambda api: find_snapshot_id(api, snapshot))}
        if wanted.from_volume is not None:
            volume = wanted.from_volume
            return {"volume_id": self._calls.send(deadline, lambda api: find_id(api, VOLUME, volume))}
        return None

    def _find(self, deadline: Deadline, name: str) -> JsonObject | None:
        found = self._calls.list_all(deadline, "/volumes", name=name)
        if len(found) > 1:
            raise PluginError(f"several projects have a volume {name}: name one in CISTERN_PROJECT of the plugin")
        return found[0] if found else None

    def _require(self, deadline: Deadline, name: str) -> JsonObject:
        """Return a volume that has a file system and is not being deleted."""
        volume = self._find(deadline, name)
        if volume is None or volume["state"] == VolumeState.DELETING:
            raise UnknownVolume(f"there is no volume {name}: `docker volume create -d cistern {name}` creates it")
        self._require_filesystem(name, volume)
        return volume

    def _require_usable(self, deadline: Deadline, name: str, volume: JsonObject) -> None:
        self._require_filesystem(name, volume)
        if volume["state"] == VolumeState.ERROR:
            volume = self._calls.send(deadline, lambda api: api.get(f"/volumes/{volume['id']}"))
            reason = (volume.get("last_error") or {}).get("detail", "its last job has failed")
            raise PluginError(
                f"volume {name} is in the state error, {reason}: `cistern volumes delete {name}` removes it"
            )

    def _require_filesystem(self, name: str, volume: JsonObject) -> None:
        if not volume["filesystem"]:
            raise PluginError(
                f"volume {name} has no file system, so that containers cannot use it: choose another name"
            )

    def _await_job_of(self, deadline: Deadline, volume: JsonObject) -> None:
        if volume["job_id"] is not None:
            self._calls.job_at_end(deadline, volume["job_id"])


def _described(volume: JsonObject, found: dict[str, str]) -> dict[str, Any]:
    return {
        "Name": volume["name"],
        "Mountpoint": found.get(volume["id"], ""),
        "CreatedAt": volume["created_at"],
    }


def _require_no_failure(job: JsonObject) -> None:
    """Raise PluginError if a job has ended without success; one that is at work goes on by itself."""
    if has_ended(job) and not has_succeeded(job):
        raise PluginError(f"{failure(job)}; `cistern jobs show {job['id']}` shows more")
