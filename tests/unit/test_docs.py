"""The documentation, compared with the code: its tables, its links, and the code that it quotes."""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from api.problems import PROBLEM_TYPES
from domain.bulk.model import ItemCode
from domain.check.findings import CheckCode
from domain.jobs.attempt import Outcome
from domain.jobs.kinds import JobKind
from domain.jobs.states import JobStatus
from domain.jobs.webhooks.model import EventType
from domain.operations import OPERATIONS
from domain.settings import PREFIX, Settings
from tests.support.commands import written

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(
    [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), ROOT / "clients/python/README.md"]
)
SOURCES = sorted(file for package in ("api", "worker", "domain") for file in (ROOT / package).rglob("*.py"))
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
LEVELS = ("debug", "info", "warning", "error", "exception", "critical")
#: Words that look like log events and are names of columns, files and modules, or actions in the audit log.
NO_EVENT = re.compile(r".*\.(id|log|html|pid|main|lock|sock|create|update|delete|rotate|revoke|cancel)")
#: The private words that the code keeps; each has to be explained.
KEPT_WORDS = set(
    re.findall(
        r"\S+",
        "abandon attempt backend catch-up chunk claim draft drain epoch fence grant lane lease ledger maintenance"
        " orphan outcome rescue seal settle stall superseded supervisor sweep watcher",
    )
)


def prose(page: Path) -> str:
    """Return a page without its fenced code."""
    return re.sub(r"^( *)(```|~~~~).*?^\1\2 *$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def table(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its head."""
    _, found, rest = (DOCS / page).read_text().partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    lines = re.search(r"^\|.*?(?=^[^|])", f"{rest}\n.", re.MULTILINE | re.DOTALL)
    assert lines is not None
    return [[cell.strip() for cell in f"{line} ".split("|")[1:-1]] for line in lines[0].splitlines()[2:]]


def name(cell: str) -> str:
    return cell.strip("`* |")


def slug(heading: str) -> str:
    """Return the anchor that a code host gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def definitions(file: Path) -> set[str]:
    """Return the functions, classes and methods that a file defines, methods with their class."""
    found = set[str]()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(file.read_text()), "")
    return found


def texts(node: ast.AST) -> Iterator[str]:
    """Return all text constants in a syntax tree."""
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def logged_events() -> set[str]:
    """Return every log event of the source.

    A constant is one if (1) it is the first argument of a call such as ``log.info``, or (2) it has the subject of one
    that is: some events reach the log through a variable.
    """
    trees = [ast.parse(file.read_text()) for file in SOURCES]
    calls = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and node.args
    ]
    event = re.compile(r"[a-z_]+\.[a-z_]+")
    logged = {text for call in calls for text in texts(call.args[0]) if event.fullmatch(text)}
    subjects = {text.partition(".")[0] for text in logged} | {"jobs", "messages", "rows", "schedules"}
    named = {text for tree in trees for text in texts(tree) if event.fullmatch(text)}
    named -= {*JobKind, *EventType}
    indirect = {text for text in named if text.partition(".")[0] in subjects and not NO_EVENT.fullmatch(text)}
    dynamic = {f"volume.{code}" for code in (ItemCode.EXPANDED, ItemCode.SNAPSHOTTED)}  # domain/bulk/chunks.py
    return logged | indirect | dynamic


def test_readme_has_at_most_120_lines() -> None:
    assert len(README.read_text().splitlines()) <= 120


def test_readme_and_security_page_state_who_may_use_the_api() -> None:
    assert "Every request needs a key." in " ".join(README.read_text().split()).partition("## ")[0]
    assert "needs a proxy with TLS" in (ROOT / "SECURITY.md").read_text()


def test_table_of_attributes_of_spans_is_that_of_the_code() -> None:
    attribute = re.compile(r'"((?:cistern|error|http|messaging|network|url)\.[a-z_]+(?:[._][a-z]+)*)"')
    files = [file for package in ("api", "worker", "domain") for file in (ROOT / package).rglob("*.py")]
    users = [source for file in files if re.search("trac(er|ing)", source := file.read_text())]
    asgi = {"http.disconnect", "http.response.start", "http.response.body"}
    in_code = {found for source in users for found in attribute.findall(source)} - asgi
    in_docs = [found for row in table("traces.md", "## Attributes") for found in re.findall(r"`([a-z_.]+)`", row[0])]

    assert sorted(in_docs) == sorted(in_code)


def test_settings_table_has_the_names_and_defaults_of_the_code() -> None:
    def written(default: Any) -> str:
        return "" if default in (None, "", ()) else f"{default:g}" if isinstance(default, float) else str(default)

    found = {name(row[0]): name(row[1]) for row in table("operations.md", "## Settings")}
    expected = {
        f"{PREFIX}{field.upper()}": written(info.get_default()) for field, info in Settings.model_fields.items()
    } | {f"{PREFIX}BACKENDS": '{"local": "file:DATA_DIR/volumes"}'}

    assert found == expected


def test_problem_table_has_the_codes_statuses_and_titles_of_the_code() -> None:
    found = [(name(code), int(status), title) for code, status, title in table("http-api.md", "## Problems")]

    assert found == [(problem.code, problem.status, problem.title) for problem in PROBLEM_TYPES.values()]


def test_table_of_events_has_the_types_of_the_code() -> None:
    assert [name(row[0]) for row in table("webhooks.md", "## Events")] == list(EventType)


def test_check_table_has_the_codes_of_the_code() -> None:
    assert [name(row[0]) for row in table("operations.md", "### Check codes")] == list(CheckCode)


def test_log_table_has_the_events_of_the_code() -> None:
    documented = [name(row[0]) for row in table("operations.md", "### Log events")]

    assert documented == sorted(documented)
    assert set(documented) == logged_events()


def test_operation_table_has_the_states_of_the_code() -> None:
    def written(states: dict[str, str | None]) -> str:
        return ", ".join(f"{what} `{state}`" if state else f"{what} deleted" for what, state in states.items())

    expected = []
    for operation in OPERATIONS.values():
        moved = {"volume": operation.volume, "source": operation.source, "snapshot": operation.snapshot}
        present = {what: transition for what, transition in moved.items() if transition is not None}
        states = [
            {what: getattr(one, name) for what, one in present.items()} for name in ("busy", "success", "failure")
        ]
        expected.append([f"`{operation.kind}`", *map(written, states)])

    assert [list(row) for row in table("concepts.md", "### Operations")] == expected


def test_status_table_has_the_statuses_of_the_code() -> None:
    assert {name(row[0]) for row in table("job-lifecycle.md", "## States")} == set(JobStatus)


def test_outcome_table_has_the_outcomes_of_the_code() -> None:
    documented = {name(row[0]) for row in table("job-lifecycle.md", "### How an attempt ends")}

    assert documented == {outcome.__name__ for outcome in get_args(Outcome)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        file = (page.parent / target).resolve() if target else page

        assert file.is_file(), f"{target} is not a file"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target} has no heading #{anchor}"


@pytest.mark.parametrize("page", ["job-lifecycle.md", "failure-modes.md"])
def test_functions_of_a_walk_through_the_code_are_defined_in_the_files_beside_them(page: str) -> None:
    rows = re.findall(r"^\| \[[\w/.]+\]\(\.\./([\w/.]+)\) \| `([\w.]+)` \|", (DOCS / page).read_text(), re.MULTILINE)
    missing = [f"{file}: {function}" for file, function in rows if function not in definitions(ROOT / file)]

    assert rows
    assert missing == []


def test_every_file_that_a_page_names_exists() -> None:
    named = {
        (page, path)
        for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]
        if page.name != "CHANGELOG.md"
        for path in re.findall(r"`((?:api|worker|domain|tests|docs|benchmarks)/[\w/.*-]+)`", page.read_text())
    }
    missing = [f"{page.name}: {path}" for page, path in named if not list(ROOT.glob(path.rstrip("/")))]

    assert missing == []


def test_quoted_code_is_that_of_the_examples() -> None:
    files = sorted(file for pattern in ("*.py", "*.toml") for file in (DOCS / "examples").rglob(pattern))
    examples = "\n".join(file.read_text() for file in files)
    quoted = re.findall(
        r"^( *)```(?:python|toml)\n(.*?)^\1```$", (DOCS / "extending.md").read_text(), re.DOTALL | re.MULTILINE
    )
    plain = [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in quoted]

    assert len(plain) > 5
    assert [code for code in plain if code not in examples and _indented(code) not in examples] == []


def _indented(code: str) -> str:
    return re.sub(r"^(?=.)", "    ", code, flags=re.MULTILINE)


def test_glossary_defines_every_kept_word_once_and_in_order() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)

    assert words == sorted(words)
    assert max(Counter(words).values()) == 1
    assert set(words) >= KEPT_WORDS


def test_page_of_the_command_line_has_a_row_for_every_command() -> None:
    rows = re.findall(r"^\| `cistern ([a-z -]+)` \|", (DOCS / "command-line.md").read_text(), re.MULTILINE)

    assert sorted(rows) == sorted(written())


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    def pages(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from pages(value) if isinstance(value, list) else [value]

    listed = list(pages(tomllib.loads((DOCS / "zensical.toml").read_text())["project"]["nav"]))

    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_decision_is_listed_and_has_its_three_parts() -> None:
    index = (DOCS / "decisions/index.md").read_text()
    for page in sorted((DOCS / "decisions").glob("0*.md")):
        headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)

        assert f"]({page.name})" in index
        assert headings == ["Context", "Decision", "Consequences"]


def test_revisions_that_blame_ignores_are_whole_hashes() -> None:
    lines = (ROOT / ".git-blame-ignore-revs").read_text().splitlines()

    assert [line for line in lines if not re.fullmatch(r"#.*|[0-9a-f]{40}", line)] == []
