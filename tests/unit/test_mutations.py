"""The list of mutations does not rot: each still says what to change, and which tests there are to notice."""

import ast
from pathlib import Path

import pytest

from tests.mutation.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]

every_mutation = pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=lambda mutation: mutation.name)


@every_mutation
def test_what_is_to_be_changed_is_there_once(mutation: Mutation) -> None:
    assert mutation.applies_to(ROOT)


@every_mutation
def test_what_it_is_changed_into_is_python(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text().replace(mutation.text, mutation.instead)

    assert ast.dump(ast.parse(source)) != ast.dump(ast.parse((ROOT / mutation.file).read_text()))


@every_mutation
def test_the_tests_that_must_notice_are_there(mutation: Mutation) -> None:
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text() if name else (ROOT / path).is_file()
