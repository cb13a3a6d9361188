"""Rules of the project that neither the linter nor the type checker enforces."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "worker", "domain")
MIGRATIONS = "domain/db/migrations/versions"  # in the style of Alembic's generated scripts
MAX_FUNCTION_LINES = 40
MAX_FILE_LINES = 300


def sources() -> list[str]:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    own = (str(file.relative_to(ROOT)) for file in files if not file.match("*_pb2*.py"))  # those are generated
    return sorted(file for file in own if MIGRATIONS not in file)


SOURCES = sources()


def text_of(source: str) -> str:
    return (ROOT / source).read_text()


def tree(source: str) -> ast.Module:
    return ast.parse(text_of(source))


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines without decorators and docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring_lines = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring_lines


def calls(source: str) -> set[str]:
    """Return the names of the methods that are called, such as ``commit`` in ``session.commit()``."""
    nodes = (node for node in ast.walk(tree(source)) if isinstance(node, ast.Call))
    return {node.func.attr for node in nodes if isinstance(node.func, ast.Attribute)}


def imports(source: str) -> set[str | None]:
    return {node.module for node in ast.walk(tree(source)) if isinstance(node, ast.ImportFrom)}


def called_at_import(source: str) -> set[str]:
    """Return the names that a module calls when it is imported, outside of functions and classes."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If)
    top_level = (statement for statement in tree(source).body if not isinstance(statement, definitions))
    nodes = (node for statement in top_level for node in ast.walk(statement))
    return {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_no_function_is_long() -> None:
    lengths = {f"{source}: {function.name}": length(function) for source in SOURCES for function in functions(source)}

    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_file_is_long() -> None:
    """Blank lines do not count."""
    lengths = {source: sum(map(bool, map(str.strip, text_of(source).splitlines()))) for source in SOURCES}

    assert {source: lines for source, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_only_alembic_commits_or_rolls_back_explicitly() -> None:
    explicit = {source for source in SOURCES if calls(source) & {"commit", "rollback", "begin_nested"}}

    assert explicit == {"domain/db/migrations/env.py"}  # Alembic's connection is not committed by `Database`


def test_every_module_has_a_docstring() -> None:
    assert [source for source in SOURCES if not ast.get_docstring(tree(source))] == []


def test_no_module_has_a_meaningless_name() -> None:
    meaningless = {"utils", "util", "common", "core", "base", "manager", "helper", "helpers"}
    base_classes = {"api/schemas/base.py", "domain/db/base.py"}  # these do contain the base class of a package

    found = {source for source in SOURCES if meaningless & set(Path(source).with_suffix("").parts)}
    assert found - base_classes == set()


def test_domain_packages_do_not_import_the_settings() -> None:
    importing = {source for source in SOURCES if source.startswith("domain/") and "domain.settings" in imports(source)}

    assert importing == {"domain/services.py", "domain/logs.py"}


def test_no_private_name_is_imported_from_another_module() -> None:
    nodes = ((source, node) for source in SOURCES for node in ast.walk(tree(source)))
    imported = [
        (source, alias.name) for source, node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]

    assert [(source, name) for source, name in imported if name.startswith("_")] == []


def test_nothing_is_opened_when_a_module_is_imported() -> None:
    opening = {"Settings", "load_settings", "Database", "JobQueue", "Backends", "create_async_engine"}

    assert {source for source in SOURCES if opening & called_at_import(source)} == set()


def test_only_one_class_of_the_file_driver_reaches_files_by_name_and_by_directory_descriptors() -> None:
    by_name = {"open", "link", "symlink", "rename", "replace", "unlink", "stat", "lstat", "mkdir", "rmdir", "scandir"}
    methods = {"exists", "is_file", "is_dir", "touch", "iterdir", "glob", "rglob", "read_text", "write_text", "chmod"}
    modules = {"shutil": {"rmtree", "copyfile", "copy", "move"}, "tempfile": None, "glob": None, "os": by_name}
    #: Those of the root itself, whose path is the operator's.
    of_the_root = {"os.open(root, _DIRECTORY)", "root.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)"}
    found = []
    for source in (source for source in SOURCES if source.startswith("domain/storage/file/")):
        for node in ast.walk(tree(source)):
            if not isinstance(node, ast.Call) or ast.unparse(node) in of_the_root:
                continue
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            module = owner.id if isinstance(owner, ast.Name) else ""
            forbidden = (name == "open" and owner is None) or name in methods
            if module in modules:
                forbidden = modules[module] is None or name in (modules[module] or ())
                by_descriptor = any((keyword.arg or "").endswith("dir_fd") for keyword in node.keywords)
                by_descriptor |= ast.unparse(node) == "os.scandir(self.handle)"
                forbidden &= not (source.endswith("/folder.py") and by_descriptor)
            if forbidden:
                found.append(f"{source}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
