"""Freezing: no write reaches a file system until it is thawed, and all that was written before is on the volume.

Two processes see to the thaw. The guard (`freeze_guard.py`) thaws when the agent asks, dies or takes too long; the
agent thaws when the guard dies or does not thaw in time. If both die at once, the agent thaws when it starts.
"""

import errno
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final

from worker.node.host import filesystems
from worker.node.host.calls import ENVIRONMENT
from worker.node.host.errors import AlreadyFrozen, FreezeFailed, HostFailed, HostStuck

#: How long the agent waits beyond the guard's deadline before it thaws by itself, in seconds.
MARGIN_SECONDS: Final = 1.0
#: How long freezing may take beyond the deadline: the kernel cannot be stopped in it, and then thaws at once.
START_SECONDS: Final = 30.0
THAW_SECONDS: Final = 10.0
_GUARD: Final = Path(__file__).with_name("freeze_guard.py")


class FreezeProgress(StrEnum):
    """What has become of a freeze."""

    STARTING = "starting"
    FROZEN = "frozen"
    RELEASED = "released"  # thawed because it was asked to
    EXPIRED = "expired"  # thawed because it took too long
    THAWED = "thawed"  # another process thawed it
    REFUSED = "refused"  # never frozen
    GUARD_LOST = "guard-lost"  # the guard died or hung, and this process thawed


_UNDECIDED: Final = frozenset({FreezeProgress.STARTING, FreezeProgress.FROZEN})


class Freeze:
    """One freeze of a mounted file system, for at most ``seconds`` after `start`."""

    def __init__(self, mount_path: Path, seconds: float) -> None:
        self.mount_path = mount_path
        self._seconds = seconds
        self._state = FreezeProgress.STARTING
        self._errno = 0
        self._is_abandoned = False
        self._changed = threading.Condition()
        self._deadline = 0.0
        self._directory = -1
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def guard_pid(self) -> int | None:
        """The process that holds the freeze."""
        return self._guard.pid if self._guard else None

    def start(self) -> None:
        """Freeze the file system.

        Raises:
            AlreadyFrozen: it is frozen, by another process or by a freeze that has not ended yet.
            FreezeFailed: it cannot be frozen, or that took longer than ``seconds``; it is thawed.
            HostStuck: the kernel has not frozen it in time. It will be thawed as soon as it is frozen.
        """
        self._directory = os.open(self.mount_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._deadline = time.monotonic() + self._seconds
        try:
            guard = self._guard = self._start_guard()
        except BaseException:
            os.close(self._directory)
            raise
        if self._is_abandoned:
            self._ask_to_thaw(guard)
        threading.Thread(target=self._watch, args=(guard,), name="freeze", daemon=True).start()
        state = self._wait_while(frozenset({FreezeProgress.STARTING}), self._seconds + START_SECONDS)
        if state is FreezeProgress.FROZEN:
            return
        self._ask_to_thaw(guard)
        if state is FreezeProgress.STARTING:
            raise HostStuck(f"{self.mount_path} has not been frozen in time.")
        if state is FreezeProgress.REFUSED and self._errno == errno.EBUSY:
            raise AlreadyFrozen(f"{self.mount_path} is already frozen.")
        reason = os.strerror(self._errno) if self._errno else state.value
        raise FreezeFailed(f"{self.mount_path} could not be frozen: {reason}.")

    def still_frozen(self) -> bool:
        """Return whether the file system has been frozen from the start until now, as far as this process knows."""
        return self._state is FreezeProgress.FROZEN and time.monotonic() < self._deadline

    def release(self) -> bool:
        """Thaw, and return whether the file system was frozen the whole time, which the thaw itself tells.

        Raises:
            HostStuck: the file system has not been thawed in time. Both processes go on with it.
        """
        if self._guard is not None:
            self._ask_to_thaw(self._guard)
        if self._wait_while(_UNDECIDED, self._seconds + THAW_SECONDS) in _UNDECIDED:
            raise HostStuck(f"{self.mount_path} has not been thawed in time.")
        return self._state is FreezeProgress.RELEASED

    def abandon(self) -> None:
        """Thaw as soon as possible, also while `start` is at work in another thread. Does not wait."""
        self._is_abandoned = True
        if self._guard is not None:
            self._ask_to_thaw(self._guard)

    def _start_guard(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603 (no shell)
            [sys.executable, "-I", "-S", str(_GUARD), str(self.mount_path), str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=ENVIRONMENT,
            cwd="/",
        )

    def _ask_to_thaw(self, guard: "subprocess.Popen[bytes]") -> None:
        """End the guard's standard input: it thaws."""
        with self._changed, suppress(OSError):
            if guard.stdin and not guard.stdin.closed:
                guard.stdin.close()

    def _watch(self, guard: "subprocess.Popen[bytes]") -> None:
        """Follow what the guard reports until it ends; thaw if it does not."""
        try:
            final = self._follow(guard)
            if final is FreezeProgress.GUARD_LOST:
                guard.kill()
                with suppress(HostFailed):
                    filesystems.thaw_open(self._directory, self.mount_path)
        finally:
            self._ask_to_thaw(guard)
            guard.wait()
            if guard.stdout:
                guard.stdout.close()
            os.close(self._directory)
        self._change(final)

    def _follow(self, guard: "subprocess.Popen[bytes]") -> FreezeProgress:
        output = guard.stdout.fileno() if guard.stdout else -1
        poll = select.poll()  # an agent may have more open files than select can name
        poll.register(output, select.POLLIN)
        overdue = self._deadline + MARGIN_SECONDS
        received = b""
        while True:
            ready = poll.poll(max(0.0, overdue - time.monotonic()) * 1000)
            data = os.read(output, 1024) if ready else b""
            if not data and (ready or self._state is FreezeProgress.FROZEN):
                return FreezeProgress.GUARD_LOST
            if not data:  # the kernel still freezes: the guard thaws right after it
                overdue += START_SECONDS
                continue
            received += data
            for line in received.decode().splitlines():
                word, _, number = line.partition(" ")
                self._errno = int(number or 0)
                if word == FreezeProgress.FROZEN:
                    self._change(FreezeProgress.FROZEN)
                else:
                    return FreezeProgress(word)

    def _change(self, state: FreezeProgress) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _wait_while(self, states: frozenset[FreezeProgress], seconds: float) -> FreezeProgress:
        with self._changed:
            self._changed.wait_for(lambda: self._state not in states, seconds)
            return self._state
