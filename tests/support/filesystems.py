"""File systems in files, as their own tools see them."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

_SBIN: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
#: Whether ext4 can be made, checked, grown and shown here.
HAS_TOOLS: Final = all(shutil.which(name, path=_SBIN) for name in ("mkfs.ext4", "e2fsck", "resize2fs", "dumpe2fs"))


def sound_ext4_bytes(file: Path) -> int:
    """Require that a file has an ext4 without errors; return how many bytes of the file it occupies."""
    run("e2fsck", "-f", "-n", file)
    shown = run("dumpe2fs", "-h", file)
    count, size = (int(re.findall(rf"^Block {name}: +(\d+)", shown, re.MULTILINE)[0]) for name in ("count", "size"))
    return count * size


def run(tool: str, *arguments: str | Path) -> str:
    """Run a tool, which must succeed; return what it writes."""
    program = shutil.which(tool, path=_SBIN)
    assert program is not None, f"{tool} is not installed"
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout
