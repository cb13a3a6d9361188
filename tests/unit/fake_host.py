"""A host for tests of the node's agent: volumes, mounts and freezes in memory, with the interface of the real one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import UUID

from worker.node.host.errors import AlreadyFrozen, HostFailed, MountInUse, TargetRefused
from worker.node.host.filesystems import FilesystemUsage
from worker.node.host.volumes import Attached, FoundVolume, Lost, always

MIB = 1024**2


@dataclass
class FakeFreeze:
    """A freeze that lasts until it is released, or until a test lets it expire."""

    host: "FakeHost"
    volume_id: UUID
    expired: bool = False

    def still_frozen(self) -> bool:
        return self.host.frozen.get(self.volume_id) is self and not self.expired

    async def release(self) -> bool:
        kept = self.still_frozen()
        if self.host.frozen.get(self.volume_id) is self:
            del self.host.frozen[self.volume_id]
        return kept


@dataclass
class FakeHost:
    """``sizes``: of the files that are not on disk, by path. ``errors``: raised by the method of that name, once each.

    ``calls`` has the names of the methods that were called, with the volume, in their order.
    """

    base_dir: Path = Path("/mounts")
    sizes: dict[Path, int] = field(default_factory=dict)
    usages: dict[UUID, FilesystemUsage] = field(default_factory=dict)
    errors: dict[str, list[Exception]] = field(default_factory=dict)
    growth_error: str | None = None
    volumes: dict[UUID, FoundVolume] = field(default_factory=dict)
    grown: dict[UUID, int] = field(default_factory=dict)
    frozen: dict[UUID, FakeFreeze] = field(default_factory=dict)
    calls: list[tuple[str, UUID | None]] = field(default_factory=list)

    def claimed(self, node: str, installation: str) -> AbstractContextManager[None]:
        return nullcontext()

    async def prepare(self) -> None:
        self._called("prepare", None)

    async def attach(
        self, file: Path, volume_id: UUID, filesystem: str | None, check: Callable[[], None] = always
    ) -> Attached:
        self._called("attach", volume_id)
        check()
        number = list(self.volumes).index(volume_id) if volume_id in self.volumes else len(self.volumes)
        mount_path = str(self.base_dir / str(volume_id)) if filesystem else None
        new = FoundVolume(volume_id, f"/dev/loop{number}", str(file), filesystem, mount_path)
        volume = self.volumes.setdefault(volume_id, new)
        if filesystem is None or self.growth_error:
            return Attached(volume.device, mount_path, None, self.growth_error if filesystem else None)
        self.grown[volume_id] = self._size(file)
        return Attached(volume.device, mount_path, self.grown[volume_id])

    async def bind(self, volume_id: UUID, target: Path, *, read_only: bool) -> None:
        self._called("bind", volume_id)
        volume = self._mounted(volume_id)
        if any(str(target) in other.targets for other in self.volumes.values() if other != volume):
            raise TargetRefused(f"Something else is mounted at {target}.")
        targets = tuple(sorted({*volume.targets, str(target)}))
        read_only_targets = tuple(
            sorted({*volume.read_only_targets} - {str(target)} | ({str(target)} if read_only else set()))
        )
        self.volumes[volume_id] = replace(volume, targets=targets, read_only_targets=read_only_targets)

    async def unbind(self, volume_id: UUID, target: Path) -> None:
        self._called("unbind", volume_id)
        if volume := self.volumes.get(volume_id):
            left = tuple(path for path in volume.targets if path != str(target))
            read_only = tuple(path for path in volume.read_only_targets if path != str(target))
            self.volumes[volume_id] = replace(volume, targets=left, read_only_targets=read_only)

    async def detach(self, volume_id: UUID) -> None:
        self._called("detach", volume_id)
        if (volume := self.volumes.get(volume_id)) and volume.targets:
            raise MountInUse(f"The volume is still mounted at {', '.join(volume.targets)}.")
        self._forget(volume_id)

    async def grow(self, volume_id: UUID, filesystem: str | None) -> int:
        self._called("grow", volume_id)
        if volume_id not in self.volumes:
            raise HostFailed("The volume is not attached to this node.")
        size = self._size(Path(str(self.volumes[volume_id].file)))
        if filesystem:
            self.grown[volume_id] = size
        return size

    async def usage(self, volume_id: UUID) -> FilesystemUsage:
        self._called("usage", volume_id)
        self._mounted(volume_id)
        size = self.grown.get(volume_id, MIB)
        return self.usages.get(volume_id, FilesystemUsage(size, 0, size, 1024, 11))

    async def trim(self, volume_id: UUID) -> None:
        self._called("trim", volume_id)
        self._mounted(volume_id)

    async def freeze(self, volume_id: UUID, seconds: float) -> FakeFreeze:
        self._called("freeze", volume_id)
        self._mounted(volume_id)
        if volume_id in self.frozen:
            raise AlreadyFrozen
        self.frozen[volume_id] = FakeFreeze(self, volume_id)
        return self.frozen[volume_id]

    async def thaw_all(self) -> Sequence[UUID]:
        self._called("thaw_all", None)
        thawed = list(self.frozen)
        self.frozen.clear()
        return thawed

    async def release_lost(self, volume_id: UUID) -> Lost:
        self._called("release_lost", volume_id)
        self._forget(volume_id)
        return Lost(is_gone=True, writes_stopped=True)

    async def found(self) -> Sequence[FoundVolume]:
        self._called("found", None)
        return list(self.volumes.values())

    def fail(self, method: str, *errors: Exception) -> None:
        """Let the next calls of a method raise these errors."""
        self.errors.setdefault(method, []).extend(errors)

    def _called(self, method: str, volume_id: UUID | None) -> None:
        self.calls.append((method, volume_id))
        if self.errors.get(method):
            raise self.errors[method].pop(0)

    def _mounted(self, volume_id: UUID) -> FoundVolume:
        volume = self.volumes.get(volume_id)
        if volume is None or volume.mount_path is None:
            raise HostFailed(f"Nothing is mounted at {self.base_dir / str(volume_id)}.")
        return volume

    def _forget(self, volume_id: UUID) -> None:
        for known in (self.volumes, self.grown, self.frozen):
            known.pop(volume_id, None)

    def _size(self, file: Path) -> int:
        return self.sizes[file] if file in self.sizes else file.stat().st_size
