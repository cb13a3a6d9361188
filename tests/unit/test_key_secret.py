"""The text of a key: recognizable, checked without a query, and not guessable."""

import re

import pytest

from domain.access.secret import new_secret, proof_of


def test_key_has_a_prefix_a_public_id_a_secret_and_a_checksum() -> None:
    secret = new_secret()

    assert re.fullmatch(r"cst_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}", secret.text)
    assert len(secret.text) == 64
    assert secret.text[4:14] == secret.proof.public_id
    assert proof_of(secret.text) == secret.proof


def test_keys_differ() -> None:
    keys = [new_secret() for _ in range(100)]

    assert len({key.text for key in keys}) == 100
    assert len({key.proof.public_id for key in keys}) == len({key.proof.digest for key in keys}) == 100


def test_key_in_which_one_character_is_wrong_is_none() -> None:
    text = new_secret().text
    for position in range(len(text)):
        other = "x" if text[position] != "x" else "y"
        assert proof_of(text[:position] + other + text[position + 1 :]) is None


@pytest.mark.parametrize("change", [" {}", "{}\n", "{}{}", "", "cst_", "{}\0"])
def test_text_around_a_key_makes_it_none(change: str) -> None:
    text = new_secret().text

    assert proof_of(change.format(text, text)) is None


def test_digest_does_not_contain_the_key() -> None:
    secret = new_secret()

    assert len(secret.proof.digest) == 32
    assert secret.proof.public_id.encode() not in secret.proof.digest
