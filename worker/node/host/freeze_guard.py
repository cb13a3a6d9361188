"""Freeze a mounted file system for a moment, and thaw it whatever becomes of the process that asked.

Run as a script (`python -I -S freeze_guard.py DIRECTORY SECONDS`), in a session of its own, by `Freeze`. It freezes,
prints "frozen", and thaws when its standard input ends or after SECONDS. Its last line says how that went: "released"
(asked to, or the other end has died), "expired" (after SECONDS), "thawed" (another process had thawed it), or
"refused ERRNO" (it could not be frozen). Only the standard library, so that it starts in a few hundredths of a second.
"""

import fcntl
import os
import select
import signal
import sys
import time

FREEZE = 0xC0045877
THAW = 0xC0045878
STDIN, STDOUT = 0, 1


def report(line: str) -> None:
    """Print a line; the process that reads it may be gone."""
    try:
        os.write(STDOUT, line.encode() + b"\n")
    except OSError:
        return


def hold(directory: int, deadline: float) -> None:
    """Freeze the file system of an open directory until the deadline, or until standard input ends."""
    try:
        fcntl.ioctl(directory, FREEZE, 0)
    except OSError as error:
        report(f"refused {error.errno}")
        return
    try:
        report("frozen")
        asked, _, _ = select.select([STDIN], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        try:
            fcntl.ioctl(directory, THAW, 0)
            was_frozen = True
        except OSError:
            was_frozen = False
    report(("released" if asked else "expired") if was_frozen else "thawed")


def lower_oom_score() -> None:
    """When memory runs out, the kernel kills other processes first, if this one may ask for that."""
    try:
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, b"-1000")
    except OSError:
        return


def main() -> None:
    """Freeze what the command line names."""
    lower_oom_score()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    deadline = time.monotonic() + float(sys.argv[2])
    hold(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY), deadline)


if __name__ == "__main__":
    main()
