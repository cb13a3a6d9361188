"""The size and the smallest block of a file system are read from its superblock, which anybody may have written."""

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.storage.driver import MAX_STORED_SIZE
from domain.storage.file.superblock import Superblock, filesystem_size, superblock_of
from domain.storage.filesystems import FILESYSTEMS

MIB, GIB = 1024**2, 1024**3
MAKE = {
    "ext4": ["/usr/sbin/mkfs.ext4", "-q", "-F"],
    "xfs": ["/usr/sbin/mkfs.xfs", "-q"],
    "btrfs": ["/usr/sbin/mkfs.btrfs", "-q"],
}
every_filesystem = pytest.mark.parametrize("filesystem", FILESYSTEMS)


@contextmanager
def image(folder: Path, filesystem: str, size: int, *options: str) -> Iterator[int]:
    if not Path(MAKE[filesystem][0]).exists():
        pytest.skip(f"{MAKE[filesystem][0]} is not installed")
    path = folder / "image"
    path.touch()
    os.truncate(path, size)
    subprocess.run([*MAKE[filesystem], *options, path], check=True, capture_output=True)
    with path.open("r+b") as file:
        yield file.fileno()


@every_filesystem
@pytest.mark.parametrize("size", [300 * MIB, GIB, 15 * 1024 * GIB])
def test_size_is_that_of_the_file_but_for_what_a_file_system_leaves_unused(
    tmp_path: Path, filesystem: str, size: int
) -> None:
    with image(tmp_path, filesystem, size) as handle:
        found = filesystem_size(handle, filesystem)
    assert found is not None
    assert 0 <= size - found < MIB


@pytest.mark.parametrize("block", [1024, 2048, 4096])
def test_size_of_ext4_counts_whole_blocks_of_every_size(tmp_path: Path, block: int) -> None:
    with image(tmp_path, "ext4", 72 * MIB + 1, f"-b{block}") as handle:
        assert filesystem_size(handle, "ext4") == 72 * MIB


@pytest.mark.parametrize("options", [("-O", "^64bit"), ("-O", "64bit")])
def test_size_of_ext4_is_found_with_and_without_large_block_numbers(tmp_path: Path, options: tuple[str, ...]) -> None:
    with image(tmp_path, "ext4", 64 * MIB, *options) as handle:
        assert filesystem_size(handle, "ext4") == 64 * MIB


def test_size_of_ext4_has_the_upper_half_of_the_number_of_blocks(tmp_path: Path) -> None:
    with image(tmp_path, "ext4", 64 * MIB, "-b4096", "-O", "64bit") as handle:
        os.pwrite(handle, (2).to_bytes(4, "little"), 1024 + 0x150)
        assert filesystem_size(handle, "ext4") == 64 * MIB + 2 * 2**32 * 4096


@every_filesystem
def test_another_file_system_has_no_size(tmp_path: Path, filesystem: str) -> None:
    other = "btrfs" if filesystem == "ext4" else "ext4"
    with image(tmp_path, other, 300 * MIB) as handle:
        assert filesystem_size(handle, filesystem) is None


@every_filesystem
@pytest.mark.parametrize("size", [0, 512, 65 * 1024, MIB])
def test_empty_file_has_none(tmp_path: Path, filesystem: str, size: int) -> None:
    (tmp_path / "empty").write_bytes(bytes(size))
    with (tmp_path / "empty").open("rb") as file:
        assert filesystem_size(file.fileno(), filesystem) is None


#: Where each superblock is, and its magic with the offset in it.
MAGIC = {"ext4": (1024, 0x38, b"\x53\xef"), "xfs": (0, 0, b"XFSB"), "btrfs": (65536, 0x40, b"_BHRfS_M")}


@given(st.sampled_from(sorted(FILESYSTEMS)), st.binary(min_size=1024, max_size=1024))
def test_whatever_is_in_a_superblock_the_size_is_one_that_a_volume_can_have(filesystem: str, content: bytes) -> None:
    offset, at, magic = MAGIC[filesystem]
    handle = os.memfd_create("image")
    try:
        os.pwrite(handle, content[:at] + magic + content[at + len(magic) :], offset)
        size = filesystem_size(handle, filesystem)
    finally:
        os.close(handle)
    assert size is None or 0 < size <= MAX_STORED_SIZE


def xfs_image() -> bytes:
    return struct.pack(">4sIQ", b"XFSB", 4096, 81_920).ljust(102, b"\0") + struct.pack(">H", 512) + bytes(1000)


def ext4_image(*, blocks: int, incompatible: int = 0, log_size: int = 2) -> bytes:
    image = bytearray(4096)
    for offset, value in ((0x4, blocks % 2**32), (0x18, log_size), (0x60, incompatible), (0x150, blocks >> 32)):
        struct.pack_into("<I", image, 1024 + offset, value)
    struct.pack_into("<H", image, 1024 + 0x38, 0xEF53)
    return bytes(image)


def btrfs_image() -> bytes:
    image = bytearray(65_536 + 4096)
    image[65_536 + 0x40 : 65_536 + 0x48] = b"_BHRfS_M"
    struct.pack_into("<Q", image, 65_536 + 0x70, 999)  # of all devices
    struct.pack_into("<Q", image, 65_536 + 0xD1, 201_326_592)
    struct.pack_into("<I", image, 65_536 + 0x90, 4096)
    return bytes(image)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (xfs_image(), Superblock("xfs", 335_544_320, 512)),
        (ext4_image(blocks=65_536, log_size=0), Superblock("ext4", 64 * MIB, 1024)),
        (ext4_image(blocks=2**33 + 1, incompatible=0x80), Superblock("ext4", (2**33 + 1) * 4096, 4096)),
        (ext4_image(blocks=2**33 + 1), Superblock("ext4", 4096, 4096)),
        (ext4_image(blocks=1, log_size=60), None),
        (btrfs_image(), Superblock("btrfs", 201_326_592, 4096)),
        (bytes(128 * 1024), None),
        (b"", None),
        (b"XFSB", None),
    ],
)
def test_superblock_of_any_kind_is_found(tmp_path: Path, content: bytes, expected: Superblock | None) -> None:
    (tmp_path / "image").write_bytes(content)
    with (tmp_path / "image").open("rb") as file:
        assert superblock_of(file.fileno()) == expected
