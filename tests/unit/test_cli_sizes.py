"""Sizes of the command line, as people write and read them."""

import pytest

from api.cli.sizes import size_of, size_text
from api.schemas.fields import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("10GiB", 10 * 2**30), ("10G", 10 * 2**30), ("10Gi", 10 * 2**30), ("10g", 10 * 2**30)),
        *(("10GB", 10 * 10**9), ("1.5T", 3 * 2**39), ("4096", 4096), (" 4096 ", 4096), ("7 M", 7 * 2**20)),
    ],
)
def test_size_is_sent_as_the_api_reads_it(text: str, size: int) -> None:
    sent = size_of(text)

    assert (sent if isinstance(sent, int) else parse_size(sent)) == size


@pytest.mark.parametrize("text", ["much", "10X", "-1", "", "10 GiB more"])
def test_what_is_no_size_is_left_for_the_api_to_refuse(text: str) -> None:
    assert size_of(text) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (10 * 2**30, "10 GiB"), (3 * 2**39, "1.5 TiB")),
        *((2**20 - 1, "1 MiB"), (4097, "4 KiB"), (2**60, "1024 PiB"), (None, ""), (1_234_567, "1.18 MiB")),
    ],
)
def test_size_is_printed_in_its_largest_unit(size: int | None, text: str) -> None:
    assert size_text(size) == text
