"""Text for terminals and logs that people read: what others wrote cannot move the cursor or forge a line."""

import re
from typing import Final

#: C0 and C1 controls, line and paragraph separators, the controls of text direction, and halves of surrogate pairs,
#: which stand for the bytes of a file name that is not UTF-8.
_CONTROLS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CONTROLS_BUT_NEWLINE: Final = re.compile(f"(?!\n){_CONTROLS.pattern}")


def printable(text: str) -> str:
    r"""Return the text in one line: each control character is replaced by its escape, such as ``\x1b``."""
    return _CONTROLS.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Return a text of several lines, each indented so that none can be taken for a line of another origin."""
    return _CONTROLS_BUT_NEWLINE.sub(_escape, f"  {text}").replace("\n", "\n  ")


def _escape(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]
