"""Sizes as people write and read them."""

import re
from typing import Final

_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
#: Units as coreutils and LVM read them: `10G` and `10Gi` are 2^30 times ten, `10GB` is 10^9 times ten.
_BINARY: Final = re.compile(r"([0-9.]+) *([KMGTkmgt])[Ii]?")


def size_of(text: str) -> str | int:
    """Return what the API is sent for a size; it refuses what is none, and names the member."""
    text = text.strip()
    if text.isdecimal():
        return int(text)
    match = _BINARY.fullmatch(text)
    return f"{match[1]}{match[2].upper()}iB" if match else text


def size_text(size: int | None) -> str:
    """Return a size in the largest unit of which it has one, with at most two decimals; empty if it is not known."""
    if size is None:
        return ""
    number, unit = float(size), 0
    while abs(number) >= 1023.995 and unit < len(_UNITS) - 1:  # noqa: PLR2004 (would be printed as 1024)
        number, unit = number / 1024, unit + 1
    return f"{number:.2f}".rstrip("0").rstrip(".") + f" {_UNITS[unit]}"
