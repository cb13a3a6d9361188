"""Who else may write to a directory on which the safety of everything in it depends."""

import os
import stat


def others_that_may_write(status: os.stat_result) -> str | None:
    """Return who other than root, this process's user and its groups may change a directory; None if nobody may."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to the user {status.st_uid}"
    if status.st_mode & stat.S_IWOTH:
        return f"everybody may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    if status.st_mode & stat.S_IWGRP and status.st_gid not in {os.getegid(), *os.getgroups()}:
        return f"the group {status.st_gid} may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return None
