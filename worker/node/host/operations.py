"""Attach, detach and grow volumes on this host: loop device, mount, file system, in the right order.

All of it blocks; `Host` calls it from threads. Each operation finds out from the kernel how far an earlier one has
come, and does the rest.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from domain.errors import StorageError
from worker.node.host import filesystems, mountinfo
from worker.node.host.calls import within
from worker.node.host.claim import claimed
from worker.node.host.errors import GrowthRefused, HostFailed, MountInUse, VolumeFileInUse
from worker.node.host.filesystems import FilesystemUsage
from worker.node.host.locks import volume_locked
from worker.node.host.loop_devices import LoopDevice, LoopDevices
from worker.node.host.mounts import DIRECTORY_MODE, Mounts, resolved
from worker.node.host.targets import Targets
from worker.node.host.volumes import Attached, FoundVolume, Lost, always

#: How long each step of letting go of a lost volume may take, in seconds. There are four, and one for each mount.
LOST_STEP_SECONDS: Final = 5.0

_BASE: Final = UUID(int=0)  # locked while the base directory becomes a mount
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class HostOperations:
    """The volumes of one node, mounted below ``base_dir``."""

    def __init__(
        self,
        base_dir: Path,
        loops: LoopDevices | None = None,
        mounts: Mounts | None = None,
        *,
        allowed: Sequence[Path] = (),
    ) -> None:
        """Prepare the operations; holders may have volumes below ``allowed`` directories, see `Targets`."""
        self.base_dir = resolved(base_dir)
        self._targets = Targets(self.base_dir, allowed)
        self._loops = loops or LoopDevices()
        self._mounts = mounts or Mounts()
        self._place = hashlib.sha256(str(self.base_dir).encode()).hexdigest()[:12]

    def mount_path(self, volume_id: UUID) -> Path:
        """Return where the file system of a volume is mounted, if it is."""
        return self.base_dir / str(volume_id)

    def claimed(self, node: str, installation: str) -> AbstractContextManager[None]:
        """Keep the agents of other nodes, and others of this one, from the base directory while the block runs.

        Raises:
            ConfigurationError: one of them has it, or has left volumes there.
        """
        self.base_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        return claimed(self.base_dir, node, installation, in_use=lambda: bool(self.found()))

    def prepare(self) -> None:
        """Make the base directory a shared mount."""
        with self._locked(_BASE):
            self._mounts.share(self.base_dir)

    def attach(
        self, file: Path, volume_id: UUID, filesystem: str | None, check: Callable[[], None] = always
    ) -> Attached:
        """Give the file a loop device and mount it; grow its file system to the size of the file.

        ``check`` raises an error when this must not be done any more; it is called right before each step.
        """
        self.prepare()
        with self._locked(volume_id):
            check()
            device = self._loops.attach(file, self._mark(volume_id))
            if filesystem is None:
                return Attached(device.path, None)
            path = self.mount_path(volume_id)
            grown_to, error = None, None
            if filesystem == "ext4" and not self._loops.is_mounted(device):
                grown_to, error = self._grow_unmounted(device, file)
            try:
                check()
                self._mounts.mount(device.path, path, filesystem)
            except StorageError:
                with suppress(StorageError):
                    self._loops.detach(device)  # as before; refused if something is mounted on it after all
                raise
            if grown_to is None and error is None:
                grown_to, error = self._grow_mounted(device, path, filesystem)
            return Attached(device.path, str(path), grown_to, error)

    def bind(self, volume_id: UUID, target: Path, *, read_only: bool) -> None:
        """Show an attached volume's file system at a holder's directory as well."""
        with self._locked(volume_id):
            self._mounts.bind(self.mount_path(volume_id), self._targets.require(target), read_only=read_only)

    def unbind(self, volume_id: UUID, target: Path) -> None:
        """Remove the bind mount of a holder; never anything else that is mounted there."""
        with self._locked(volume_id):
            directory = str(resolved(target))
            device = self._device(volume_id)
            table = mountinfo.read()
            here = table.at(directory)
            if here is None or device is None or here not in table.of_device(device.path):
                return
            self._mounts.unmount(Path(directory))

    def detach(self, volume_id: UUID) -> None:
        """Unmount the volume and take its loop device away.

        Raises:
            MountInUse: processes use it, or a bind mount of a holder is left.
            DeviceInUse: it is mounted or open elsewhere, such as in a container. It is still attached then.
            VolumeFileInUse: it is attached below another base directory, as that of this node was once.
        """
        with self._locked(volume_id):
            device, path = self._device(volume_id), self.mount_path(volume_id)
            if device is None:
                self._require_nowhere(volume_id)
            table = mountinfo.read()
            if device:
                places = {mount.mount_point for mount in table.of_device(device.path)} - {str(path)}
                if places:
                    raise MountInUse(f"The volume is still mounted at {', '.join(sorted(places))}.")
            if table.at(str(path)):
                filesystems.thaw(path)  # a frozen file system would stay in the kernel, out of reach
                self._mounts.unmount(path)
            if device:
                self._loops.detach(device)
            with suppress(OSError):
                path.rmdir()

    def grow(self, volume_id: UUID, filesystem: str | None) -> int:
        """Give the device and its file system the size of the file, which has grown; return that size in bytes.

        Raises:
            GrowthRefused: the file system has not been grown. The device has.
            HostFailed: the volume is not attached here.
        """
        with self._locked(volume_id):
            device = self._device(volume_id)
            if device is None:
                raise HostFailed("The volume is not attached to this node.")
            size = self._loops.update_capacity(device)
            if filesystem is None:
                return size
            grown_to, error = self._grow_mounted(device, self.mount_path(volume_id), filesystem)
            if grown_to is None:
                raise GrowthRefused(error)
            return grown_to

    def usage(self, volume_id: UUID) -> FilesystemUsage:
        """Measure the mounted file system of a volume.

        Raises:
            HostFailed: it is not mounted. The directory below would tell about another file system.
        """
        return filesystems.usage(self.mounted_path(volume_id))

    def trim(self, volume_id: UUID) -> None:
        """Give the unused blocks of a volume back to its backend."""
        filesystems.trim(self.mounted_path(volume_id))

    def mounted_path(self, volume_id: UUID) -> Path:
        """Return where the file system of a volume is mounted.

        Raises:
            HostFailed: it is not mounted.
        """
        path = self.mount_path(volume_id)
        if mountinfo.read().at(str(path)) is None:
            raise HostFailed(f"Nothing is mounted at {path}.")
        return path

    def release_lost(self, volume_id: UUID) -> Lost:
        """Let go of a volume that belongs to this node no longer, without waiting for the processes that use it.

        ext4 and XFS fail all further use and write nothing more. Then everything is unmounted lazily, and the loop
        device loses its file, at once or when the last process closes it. No step takes longer than a few seconds.
        """
        problems: list[str] = []
        device, table = self._device(volume_id), mountinfo.read()
        mounts = table.of_device(device.path) if device else []
        here = table.at(str(self.mount_path(volume_id)))
        paths = sorted({mount.mount_point for mount in (*mounts, *([here] if here else []))})
        stopped = device is None
        if paths:
            stopped = bool(_try(problems, filesystems.shut_down, Path(paths[0])))
        for path in paths:
            _try(problems, _unmount_lazily, self._mounts, Path(path))
        if device and not stopped:
            stopped = bool(_try(problems, self._loops.empty, device))
        is_gone = device is None or bool(_try(problems, self._loops.release, device))
        with suppress(OSError):
            self.mount_path(volume_id).rmdir()
        return Lost(is_gone, stopped or is_gone, tuple(problems))

    def found(self) -> list[FoundVolume]:
        """Return the volumes that this host has from this node, also those without a file system."""
        table = mountinfo.read()
        marked = re.compile(f"cistern:({_UUID}):{self._place}")
        return [
            self._found(device, UUID(match[1]), table)
            for device in self._loops.all()
            if not device.is_leaving and (match := marked.fullmatch(device.status.mark))
        ]

    def thaw_all(self) -> list[UUID]:
        """Thaw what was left frozen; return the volumes that were."""
        return [
            volume.volume_id
            for volume in self.found()
            for path in (volume.mount_path, *volume.targets)
            if path and _try([], filesystems.thaw, Path(path))
        ]

    def _found(self, device: LoopDevice, volume_id: UUID, table: mountinfo.MountTable) -> FoundVolume:
        path = str(self.mount_path(volume_id))
        mounts = table.of_device(device.path)
        targets = [mount for mount in mounts if mount.mount_point != path]
        return FoundVolume(
            volume_id,
            device.path,
            device.file,
            mounts[0].filesystem if mounts else None,
            path if len(targets) < len(mounts) else None,
            tuple(sorted(mount.mount_point for mount in targets)),
            tuple(sorted(mount.mount_point for mount in targets if mount.is_read_only)),
        )

    def _locked(self, volume_id: UUID) -> AbstractContextManager[None]:
        self.base_dir.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        return volume_locked(self.base_dir, volume_id)

    def _mark(self, volume_id: UUID) -> str:
        return f"cistern:{volume_id}:{self._place}"

    def _device(self, volume_id: UUID) -> LoopDevice | None:
        return self._loops.marked(self._mark(volume_id))

    def _require_nowhere(self, volume_id: UUID) -> None:
        for device in self._loops.all():
            if device.status.mark.startswith(f"cistern:{volume_id}:") and not device.is_leaving:
                raise VolumeFileInUse(f"{device.path} has the volume, attached below another CISTERN_NODE_DIR.")

    def _grow_unmounted(self, device: LoopDevice, file: Path) -> tuple[int | None, str | None]:
        size, path = device.size, Path(device.path)
        try:
            with file.open("rb") as volume:
                if filesystems.needs_growth(path, volume.fileno(), _whole_blocks(size)):
                    filesystems.grow_unmounted_ext4(path, volume.fileno())
        except GrowthRefused as error:
            return None, error.message
        return size, None

    def _grow_mounted(self, device: LoopDevice, path: Path, filesystem: str) -> tuple[int | None, str | None]:
        size = device.size
        try:
            if (filesystems.mounted_size(path, Path(device.path), filesystem) or 0) < _whole_blocks(size):
                filesystems.grow_mounted(path, Path(device.path), filesystem)
        except GrowthRefused as error:
            return None, error.message
        return size, None


def _whole_blocks(size: int) -> int:
    """No file system of ours has larger blocks than 4096 bytes, and none uses a part of a block."""
    return size // 4096 * 4096


def _unmount_lazily(mounts: Mounts, path: Path) -> None:
    mounts.unmount(path, lazy=True)


def _try(problems: list[str], function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the function returns; None after an error or too long a time, which is noted."""
    try:
        return within(LOST_STEP_SECONDS, function, *arguments)
    except (StorageError, OSError) as error:
        problems.append(str(error))
        return None
