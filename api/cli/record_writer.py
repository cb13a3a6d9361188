"""``python -m api.cli.record_writer FILE``: appends numbered records, and says so after each has been synced.

Each line of the output has the number of the last record and the size of the file system in bytes, as `df` shows it.
"""

import os
import sys
from pathlib import Path
from typing import Final

#: A record, of its number.
RECORD: Final = "record {:08}\n"


def main(path: Path) -> None:
    """Write records until a signal, or the end of who reads the output, ends it."""
    number = 0
    with path.open("ab", buffering=0) as file:
        while True:
            number += 1
            file.write(RECORD.format(number).encode())
            os.fsync(file.fileno())
            found = os.fstatvfs(file.fileno())
            sys.stdout.write(f"{number} {found.f_blocks * found.f_frsize}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
