"""Texts of others on a terminal: control characters are shown as escapes."""

import pytest

from domain.check.findings import CheckCode, Finding
from domain.printable import printable, printable_lines

ALL_AGREE = "volumes: 0; all agree"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]52;c;AA==\x07", "\\x1b]52;c;AA==\\x07"),
        ("a\nb\r\tc\x00\x7f", "a\\nb\\r\\tc\\x00\\x7f"),
        ("\x85\x9b31m", "\\x85\\x9b31m"),
        ("\u200e\u200f\u061c\u2028\u2029", "\\u200e\\u200f\\u061c\\u2028\\u2029"),
        ("\u202a\u202b\u202c\u202d\u202e", "\\u202a\\u202b\\u202c\\u202d\\u202e"),
        ("\u2066\u2067\u2068\u2069", "\\u2066\\u2067\\u2068\\u2069"),
        ("\udc9b\udfff", "\\udc9b\\udfff"),
        ("Jörg <b>日本 \U0001f600", "Jörg <b>日本 \U0001f600"),
    ],
)
def test_control_characters_are_escaped_and_all_others_kept(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_of_a_traceback_stay_lines_and_none_begins_at_the_margin() -> None:
    assert printable_lines(f"ValueError: x\n{ALL_AGREE}\x1b") == f"  ValueError: x\n  {ALL_AGREE}\\x1b"


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b[1G", "\x85", "\u2028"])
def test_name_of_a_file_cannot_forge_the_summary_of_a_check(control: str) -> None:
    line = str(Finding(CheckCode.LEFTOVER, "volume x", f"no job will remove .trash/a{control}{ALL_AGREE}"))

    assert line.isprintable()
    assert line.splitlines() == [line]
