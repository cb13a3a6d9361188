"""A storage driver as an example: ``sqlite:PATH`` stores the sizes of volumes and snapshots in a SQLite file.

It stands for an appliance with a transactional interface. One transaction locks, compares the fence, applies the effect
and raises the fence; so there are no drafts, and nothing to sweep.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TypeVar
from uuid import UUID

from domain.errors import ConfigurationError
from domain.storage.backends import DriverUrl
from domain.storage.context import Fence, Grant, refuse_stale
from domain.storage.driver import Capacity, Leftover, StorageDriver, StoredObject, StoredVolume, Taken, Usage
from domain.storage.errors import SnapshotMissing, StorageBusy, TransientStorageError, VolumeMissing
from domain.storage.filesystems import refuse_filesystem

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS volumes (id TEXT PRIMARY KEY, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (id TEXT PRIMARY KEY, volume_id TEXT NOT NULL, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS fences (id TEXT PRIMARY KEY, version INTEGER NOT NULL, epoch INTEGER NOT NULL);
"""


class SqliteDriver(StorageDriver):
    """Work runs in threads, each call on a connection of its own: SQLite's lock holds between processes too."""

    def __init__(self, path: str, threads: int) -> None:
        self._path = path
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="sqlite")
        with self._connection() as db:
            db.executescript(_SCHEMA)

    def path(self, volume_id: UUID) -> None:
        """Return None: users find no files here."""

    async def create(self, volume_id: UUID, size: int, grant: Grant, filesystem: str | None = None) -> int:
        """Create a volume; never replace one. There are no bytes for a file system."""
        refuse_filesystem(filesystem)

        def work() -> int:
            with self._publishing("create", volume_id, grant) as db:
                db.execute("INSERT INTO volumes VALUES (?, ?) ON CONFLICT DO NOTHING", (str(volume_id), size))
                return _require_volume(db, volume_id)

        return await self._run(work)

    async def expand(self, volume_id: UUID, size: int, grant: Grant) -> int:
        """Raise the size; never lower it."""

        def work() -> int:
            with self._publishing("expand", volume_id, grant) as db:
                _require_volume(db, volume_id)
                db.execute("UPDATE volumes SET size = max(size, ?) WHERE id = ?", (size, str(volume_id)))
                return _require_volume(db, volume_id)

        return await self._run(work)

    async def delete(self, volume_id: UUID, grant: Grant) -> None:
        """Delete the volume and its snapshots, but keep their fences."""

        def work() -> None:
            with self._publishing("delete", volume_id, grant) as db:
                db.execute("DELETE FROM volumes WHERE id = ?", (str(volume_id),))
                db.execute("DELETE FROM snapshots WHERE volume_id = ?", (str(volume_id),))

        await self._run(work)

    async def seal(self, volume_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, even if the attempt was stopped; return the size."""

        def work() -> int | None:
            with self._sealing("seal", volume_id, grant) as db:
                return _volume_size(db, volume_id)

        return await self._run(work)

    async def take_snapshot(
        self,
        volume_id: UUID,
        snapshot_id: UUID,
        grant: Grant,
        *,
        allow_torn: bool = True,
    ) -> Taken:
        """Store the volume's size as the snapshot's, in one transaction, so it is never torn; never replace one."""

        def work() -> Taken:
            with self._publishing("take_snapshot", snapshot_id, grant) as db:
                if _snapshot_size(db, snapshot_id) is None:
                    row = (str(snapshot_id), str(volume_id), _require_volume(db, volume_id))
                    db.execute("INSERT INTO snapshots VALUES (?, ?, ?)", row)
                return Taken(_require_snapshot(db, snapshot_id), shared=True)

        return await self._run(work)

    async def restore_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int:
        """Raise the volume's size to the snapshot's; never lower it."""

        def work() -> int:
            with self._publishing("restore_snapshot", volume_id, grant) as db:
                size = max(_require_volume(db, volume_id), _require_snapshot(db, snapshot_id))
                db.execute("UPDATE volumes SET size = ? WHERE id = ?", (size, str(volume_id)))
                return size

        return await self._run(work)

    async def clone_snapshot(self, volume_id: UUID, snapshot_id: UUID, clone_id: UUID, size: int, grant: Grant) -> int:
        """Create a volume at least as large as the snapshot; never replace one."""

        def work() -> int:
            with self._publishing("clone_snapshot", clone_id, grant) as db:
                if _volume_size(db, clone_id) is None:
                    row = (str(clone_id), max(size, _require_snapshot(db, snapshot_id)))
                    db.execute("INSERT INTO volumes VALUES (?, ?)", row)
                return _require_volume(db, clone_id)

        return await self._run(work)

    async def delete_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> None:
        """Delete the snapshot, but keep its fence."""

        def work() -> None:
            with self._publishing("delete_snapshot", snapshot_id, grant) as db:
                db.execute("DELETE FROM snapshots WHERE id = ?", (str(snapshot_id),))

        await self._run(work)

    async def seal_snapshot(self, volume_id: UUID, snapshot_id: UUID, grant: Grant) -> int | None:
        """Raise the fence, even if the attempt was stopped; return the size."""

        def work() -> int | None:
            with self._sealing("seal_snapshot", snapshot_id, grant) as db:
                return _snapshot_size(db, snapshot_id)

        return await self._run(work)

    async def measure(self, volume_ids: Collection[UUID]) -> Mapping[UUID, Usage]:
        """Return the sizes; how much is in use is unknown, since this appliance does not say so."""

        def work() -> dict[UUID, Usage]:
            with self._connection() as db:
                sizes = {id_: _volume_size(db, id_) for id_ in volume_ids}
            return {id_: Usage(size, used=None) for id_, size in sizes.items() if size is not None}

        return await self._run(work)

    async def inventory(self, after: UUID | None, limit: int) -> Sequence[UUID]:
        """List the volumes, including those of which only snapshots are left."""
        query = "SELECT id FROM volumes UNION SELECT volume_id FROM snapshots ORDER BY 1"

        def work() -> list[UUID]:
            with self._connection() as db:
                stored = [UUID(row[0]) for row in db.execute(query)]
            return [id_ for id_ in stored if after is None or id_ > after][:limit]

        return await self._run(work)

    async def stat(self, volume_id: UUID, snapshot_ids: Collection[UUID]) -> StoredVolume:
        """Return sizes and fences; there are never any leftovers."""

        def work() -> StoredVolume:
            with self._connection() as db:
                rows = db.execute("SELECT id FROM snapshots WHERE volume_id = ?", (str(volume_id),))
                ids = {*snapshot_ids, *(UUID(row[0]) for row in rows)}
                snapshots = {id_: StoredObject(_snapshot_size(db, id_), _fence(db, id_)) for id_ in ids}
                return StoredVolume(StoredObject(_volume_size(db, volume_id), _fence(db, volume_id)), snapshots)

        return await self._run(work)

    async def sweep(self, volume_id: UUID, leftovers: Collection[Leftover]) -> None:
        """Do nothing: there are no leftovers."""

    async def capacity(self) -> Capacity:
        """Return the sum of all sizes; there is no limit."""

        def work() -> Capacity:
            with self._connection() as db:
                (used,) = db.execute("SELECT coalesce(sum(size), 0) FROM volumes").fetchone()
            return Capacity(total=None, used=used)

        return await self._run(work)

    async def close(self) -> None:
        """Wait for the threads without blocking the event loop."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        # A thread cannot be cancelled. Cistern never cancels this; it stops the grant and waits.
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, isolation_level=None, timeout=5)) as db:
                yield db
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode == sqlite3.SQLITE_BUSY
            raise (StorageBusy if busy else TransientStorageError)(str(error)) from error

    @contextmanager
    def _sealing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[sqlite3.Connection]:
        """Lock, compare the fence and raise it, in one transaction with whatever the block does."""
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                refuse_stale(_fence(db, subject_id), grant.fence)
                yield db
                db.execute("INSERT OR REPLACE INTO fences VALUES (?, ?, ?)", (str(subject_id), *grant.fence))
                grant.on_published(operation, subject_id)
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise

    @contextmanager
    def _publishing(self, operation: str, subject_id: UUID, grant: Grant) -> Iterator[sqlite3.Connection]:
        """Do the same unless the attempt is to stop; checked once more under the lock, right before the effect."""
        grant.check()
        with self._sealing(operation, subject_id, grant) as db:
            grant.check()
            yield db


def open_driver(url: DriverUrl, threads: int) -> SqliteDriver:
    """Open ``sqlite:PATH``.

    Raises:
        ConfigurationError: the path is missing, or the file cannot be written.
    """
    if not url.path:
        raise ConfigurationError("sqlite: needs a path, such as sqlite:/srv/volumes.db")
    try:
        return SqliteDriver(url.path, threads)
    except (TransientStorageError, sqlite3.DatabaseError) as error:
        raise ConfigurationError(f"{url.path}: {error}") from error


def _volume_size(db: sqlite3.Connection, volume_id: UUID) -> int | None:
    row = db.execute("SELECT size FROM volumes WHERE id = ?", (str(volume_id),)).fetchone()
    return row and int(row[0])


def _snapshot_size(db: sqlite3.Connection, snapshot_id: UUID) -> int | None:
    row = db.execute("SELECT size FROM snapshots WHERE id = ?", (str(snapshot_id),)).fetchone()
    return row and int(row[0])


def _fence(db: sqlite3.Connection, subject_id: UUID) -> Fence | None:
    row = db.execute("SELECT version, epoch FROM fences WHERE id = ?", (str(subject_id),)).fetchone()
    return row and Fence(*row)


def _require_volume(db: sqlite3.Connection, volume_id: UUID) -> int:
    if (size := _volume_size(db, volume_id)) is None:
        raise VolumeMissing
    return size


def _require_snapshot(db: sqlite3.Connection, snapshot_id: UUID) -> int:
    if (size := _snapshot_size(db, snapshot_id)) is None:
        raise SnapshotMissing
    return size
