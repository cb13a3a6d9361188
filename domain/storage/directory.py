"""What every process may know of all backends without reaching one: workers announce it in PostgreSQL."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import select

from domain.db.database import Database
from domain.errors import BackendOvercommitted, DatabaseUnavailable, Invalid, UnknownBackend
from domain.storage.filesystems import FILESYSTEMS
from domain.storage.model import Backend, BackendServer, is_live

#: Seconds between two readings of the directory.
_DIRECTORY_SECONDS: Final = 2.0


@dataclass(frozen=True)
class BackendStatus:
    """A backend, and the live workers that have it among their settings."""

    row: Backend
    servers: Sequence[BackendServer]

    @property
    def name(self) -> str:
        """Its name."""
        return self.row.name

    @property
    def is_served(self) -> bool:
        """Whether a live worker serves it."""
        return any(server.problem is None for server in self.servers)

    @property
    def problem(self) -> str | None:
        """Why no worker serves it; None if one does."""
        if self.is_served:
            return None
        problems = {f"{server.host}: {server.problem}" for server in self.servers}
        return "; ".join(sorted(problems)) or "no worker has it among its CISTERN_BACKENDS"

    def has_room(self, requested: int) -> bool:
        """Return whether the backend may promise so many bytes more.

        Not exact: what was promised is up to a minute old, and concurrent requests do not see each other.
        """
        total, promised = self.row.total, self.row.promised or 0
        return total is None or requested <= 0 or promised + requested <= int(total * self.row.overcommit)

    @property
    def filesystems(self) -> frozenset[str] | None:
        """The file systems that each live worker that serves it can make; None if none serves it now."""
        served = [frozenset(server.filesystems or ()) for server in self.servers if server.problem is None]
        return frozenset.intersection(*served) if served else None

    def require_filesystem(self, filesystem: str, size: int) -> None:
        """Require that a volume of ``size`` bytes with a file system can be made here.

        While no worker serves the backend, it is the job that finds out.

        Raises:
            Invalid: the backend cannot make it, or the volume is too small for it.
        """
        if (minimum := FILESYSTEMS[filesystem]) > size:
            raise Invalid(f"A volume needs at least {minimum} bytes for {filesystem}.", field="size", minimum=minimum)
        if (known := self.filesystems) is not None and filesystem not in known:
            names = ", ".join(sorted(known)) or "none"
            message = f"The backend {self.name!r} cannot make {filesystem}. It can make: {names}."
            raise Invalid(message, field="filesystem")

    def path(self, volume_id: UUID) -> str | None:
        """Return the path of a volume's bytes, None if the backend has no paths."""
        pattern = self.row.path_pattern
        return None if pattern is None else pattern.replace("{id}", str(volume_id))


class BackendDirectory:
    """What is known of all backends, as of the last `refresh`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._backends: Mapping[str, BackendStatus] = {}

    async def refresh(self) -> None:
        """Read the backends.

        Raises:
            DatabaseUnavailable: what was read before stays.
        """
        never_served = Backend.served_since.is_(None)
        async with self._database.transaction() as session:
            backends = await session.scalars(select(Backend).order_by(never_served, Backend.position, Backend.name))
            servers = await session.scalars(select(BackendServer).where(is_live()).order_by(BackendServer.since))
            by_backend: defaultdict[str, list[BackendServer]] = defaultdict(list)
            for server in servers:
                by_backend[server.backend].append(server)
            found = {row.name: BackendStatus(row, by_backend[row.name]) for row in backends}
        self._backends = found  # only now: a failed commit expires the rows

    async def run_forever(self) -> None:
        """Read the backends again and again."""
        while True:
            await asyncio.sleep(_DIRECTORY_SECONDS)
            with suppress(DatabaseUnavailable):  # what was read before stays
                await self.refresh()

    def __contains__(self, name: object) -> bool:
        return name in self._backends

    def __iter__(self) -> Iterator[str]:
        return iter(self._backends)

    def all(self) -> Collection[BackendStatus]:
        """Return every backend, the default first."""
        return self._backends.values()

    async def find(self, name: str | None) -> BackendStatus:
        """Return a backend, or the default one for None; look again before saying that there is none.

        Raises:
            UnknownBackend: there is none of this name, or none at all.
            DatabaseUnavailable: PostgreSQL does not answer.
        """
        found = self._get(name)
        if found is None:
            await self.refresh()
            found = self._get(name)
        if found is None:
            raise UnknownBackend(name or "", self)
        return found

    def has_room(self, backend: str, requested: int) -> bool:
        """Return whether a backend may promise so many bytes more; one that is unknown may."""
        return backend not in self._backends or self._backends[backend].has_room(requested)

    def require_room(self, backend: str, requested: int) -> None:
        """Require that a backend may promise so many bytes more.

        Call it after every other check (``AcceptedRequest.last_check``): whoever can send a request that is refused for
        another reason if there is room finds out by halving how much other projects leave, and nothing shows it.

        Raises:
            BackendOvercommitted: it may not.
        """
        if self.has_room(backend, requested):
            return
        # The figures are in the list of backends, for system keys: others must not learn what other projects have.
        raise BackendOvercommitted(
            f"The backend {backend!r} has promised nearly as much as it may; {requested} more bytes were requested.",
            requested=requested,
        )

    def _get(self, name: str | None) -> BackendStatus | None:
        return self._backends.get(next(iter(self._backends), "") if name is None else name)

    def served_by(self, worker_id: UUID) -> list[str]:
        """Return the names of the backends that a worker serves."""
        return [
            name
            for name, status in self._backends.items()
            if any(server.worker_id == worker_id and server.problem is None for server in status.servers)
        ]

    def path(self, backend: str, volume_id: UUID) -> str | None:
        """Return the path of a volume's bytes, None if it has none or the backend is unknown."""
        return self._backends[backend].path(volume_id) if backend in self._backends else None
