"""A container that appends numbered records to a volume, each synced, and says what is written and how large it is."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Final

from tests.support.podman import Podman

#: A record is acknowledged, by a line, after it has been synced. `df` is run ten times a second.
SCRIPT: Final = """
(while sleep 0.1; do df -B1 --output=size /data | { read -r _; read -r size; echo "size $size"; }; done) &
number=0
while :; do
  number=$((number + 1))
  printf 'record %08d\\n' $number | dd of=/data/records oflag=append conv=notrunc,fsync status=none || exit 1
  echo "written $number"
done
"""


class RecordWriter:
    """What a writer has said so far."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        #: Number of the last record that was synced.
        self.written = 0
        #: The sizes that `df` has shown, with the moments at which they were seen first.
        self.sizes: list[tuple[int, float]] = []

    def read(self) -> None:
        """Read what the writer says until its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, number = line.partition(" ")
            if word == "written":
                assert int(number) == self.written + 1
                self.written += 1
            elif not self.sizes or self.sizes[-1][0] != int(number):
                self.sizes.append((int(number), time.monotonic()))

    @property
    def size(self) -> int:
        """What `df` shows now; 0 if it has shown nothing yet."""
        return self.sizes[-1][0] if self.sizes else 0


@contextmanager
def writing(podman: Podman, volume: str, log: Path) -> Iterator[RecordWriter]:
    """Run a writer in a container that is named `writer`; kill it at the end of the block."""
    options = ["--rm", "--network=none", "--name=writer", f"--volume={volume}:/data"]
    with log.open("w") as errors:
        process = podman.open("run", *options, "shell", "/bin/sh", "-c", SCRIPT, stderr=errors)
        writer = RecordWriter(process)
        thread = Thread(target=writer.read)
        thread.start()
        try:
            yield writer
        finally:
            podman.start("kill", "writer")
            process.wait(60)
            thread.join()
            assert process.stdout is not None
            process.stdout.close()


def numbers(records: str) -> int:
    """Return how many records there are, which must be the first ones, whole and in order."""
    lines = records.splitlines()
    assert lines == [f"record {number:08}" for number in range(1, len(lines) + 1)]
    return len(lines)
