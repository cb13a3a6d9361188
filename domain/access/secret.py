"""The text of a key: ``cst_``, 10 characters of its public id, ``_``, 43 of its secret, and 6 of a checksum.

The prefix lets scanners find keys in places where they do not belong. The checksum lets a mistyped or invented key be
refused without a query. The secret has 256 bits: a guess is hopeless, so a plain hash of it is enough.
"""

import hashlib
import re
import secrets
import zlib
from functools import lru_cache
from typing import Final, NamedTuple

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_LENGTH: Final = 10
_SECRET_LENGTH: Final = 43
_CHECKSUM_LENGTH: Final = 6
_KEY: Final = re.compile(
    f"(cst_([0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}})([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)


class Proof(NamedTuple):
    """What is looked up of a key: the public id in it, and the hash that is stored instead of it."""

    public_id: str
    digest: bytes


class Secret(NamedTuple):
    """The text of a new key, and its proof."""

    text: str
    proof: Proof


def new_secret() -> Secret:
    """Make the text of a new key."""
    public_id, secret = (_random_text(length) for length in (_ID_LENGTH, _SECRET_LENGTH))
    body = f"cst_{public_id}_{secret}"
    text = body + _checksum(body)
    return Secret(text, Proof(public_id, _digest(text)))


@lru_cache(maxsize=1024)
def proof_of(text: str) -> Proof | None:
    """Return the proof of a key; None if the text is no key, or was mistyped."""
    match = _KEY.fullmatch(text)
    if match is None or match[3] != _checksum(match[1]):
        return None
    return Proof(match[2], _digest(text))


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_DIGITS) for _ in range(length))


def _checksum(body: str) -> str:
    value, digits = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
