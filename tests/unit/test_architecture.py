"""Rules of the house that neither the linter nor the type checker knows."""

import ast
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).parents[2]
ROOMS = ("api", "worker", "domain")
SCRIPTS = "domain/migrations/versions"  # Alembic writes these, in its own style


def sources() -> list[str]:
    files = (file for room in ROOMS for file in (HOUSE / room).rglob("*.py"))
    return sorted(str(file.relative_to(HOUSE)) for file in files if SCRIPTS not in str(file))


SOURCES = sources()


def text_of(source: str) -> str:
    return (HOUSE / source).read_text()


def tree(source: str) -> ast.Module:
    return ast.parse(text_of(source))


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without decorators, docstring and blank space around it."""
    first = function.body[0]
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    spoken = (first.end_lineno or 0) - first.lineno + 1 if docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - spoken


def calls(source: str) -> set[str]:
    """Names of the methods that are called, such as ``commit`` in ``session.commit()``."""
    nodes = (node for node in ast.walk(tree(source)) if isinstance(node, ast.Call))
    return {node.func.attr for node in nodes if isinstance(node.func, ast.Attribute)}


def imports(source: str) -> set[str | None]:
    return {node.module for node in ast.walk(tree(source)) if isinstance(node, ast.ImportFrom)}


def called_at_import(source: str) -> set[str]:
    """Names that a module calls by itself, outside of functions and classes."""
    inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If)
    outside = (statement for statement in tree(source).body if not isinstance(statement, inside))
    nodes = (node for statement in outside for node in ast.walk(statement))
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_no_function_is_long() -> None:
    long = [(source, one.name, length(one)) for source in SOURCES for one in functions(source) if length(one) > 40]

    assert long == []


def test_no_file_is_long() -> None:
    lines = {source: sum(map(bool, map(str.strip, text_of(source).splitlines()))) for source in SOURCES}

    assert {source: count for source, count in lines.items() if count > 250} == {}


def test_nobody_commits_or_rolls_back_by_hand() -> None:
    by_hand = {source for source in SOURCES if calls(source) & {"commit", "rollback", "begin_nested"}}

    assert by_hand == {"domain/db/migrations/env.py"}  # Alembic has no session whose end could do it


def test_a_file_says_why_it_exists() -> None:
    assert [source for source in SOURCES if not ast.get_docstring(tree(source))] == []


def test_names_say_something() -> None:
    nothing = {"utils", "util", "common", "core", "base", "manager", "helper", "helpers"}

    assert [source for source in SOURCES if nothing & set(Path(source).with_suffix("").parts)] == []


def test_rooms_get_plain_values_and_not_the_settings() -> None:
    knowing = {source for source in SOURCES if source.startswith("domain/") and "domain.settings" in imports(source)}

    assert knowing == {"domain/services.py", "domain/logs.py"}


def test_nothing_is_opened_when_a_module_is_imported() -> None:
    opening = {"Settings", "load_settings", "Database", "JobQueue", "Backends", "create_async_engine"}

    assert {source for source in SOURCES if opening & called_at_import(source)} == set()
