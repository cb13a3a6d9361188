"""Every code of a response, a job or an item is explained: the codes are read from the source, not listed here."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.explanations import PROBLEM_EXPLANATIONS
from api.job_codes import JOB_EXPLANATIONS
from api.problems import PROBLEM_TYPES
from tests.unit.test_docs import name, table

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    file
    for package in ("api", "worker", "domain")
    for file in (ROOT / package).rglob("*.py")
    # Errors of clients: printed, never stored or sent.
    if not any(file.is_relative_to(ROOT / "api" / client) for client in ("cli", "docker_plugin", "csi"))
)
#: Errors that end a process or are caught before anybody sees their code.
NEVER_SHOWN = {"access-refused", "configuration", "idempotent-replay", "migration-failed", "refused", "stopped"}
IN_SQL = re.compile(r"'code',\s*'([a-z-]+)'|\bcode = '([a-z-]+)'")
HTML = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}


def values_named_code(node: ast.AST) -> Iterator[ast.expr | None]:
    """Return the values that a node gives to something that is named ``code``."""
    match node:
        case ast.ClassDef():
            for line in node.body:
                targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
                if any(isinstance(one, ast.Name) and one.id == "code" for one in targets):
                    yield getattr(line, "value", None)
                elif node.name.endswith("Code") and node.name != "CheckCode" and isinstance(line, ast.Assign):
                    yield line.value
        case ast.Dict():
            yield from (v for k, v in zip(node.keys, node.values, strict=True) if _text(k) == "code")
        case ast.Call(func=ast.Name(id="ProblemType"), args=[_, code, _]):
            yield code
        case ast.Call():
            yield from (v for k, v in zip(node.args, node.args[1:], strict=False) if _text(k) == "code")
            yield from (keyword.value for keyword in node.keywords if keyword.arg == "code")


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def codes_in(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    constants = {
        one.target.id: one.value
        for one in tree.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    }
    for node in ast.walk(tree):
        yield from ("".join(found) for found in IN_SQL.findall(_text(node) or ""))
        for value in values_named_code(node):
            code = _text(constants.get(value.id) if isinstance(value, ast.Name) else value)
            if code is not None and re.fullmatch(r"[a-z]+(-[a-z]+)*", code):
                yield code


def codes_of_the_source() -> set[str]:
    return {code for file in SOURCES for code in codes_in(file)} - {"text"}  # the type of a column


def test_every_code_of_the_source_is_explained() -> None:
    assert codes_of_the_source() - {*PROBLEM_EXPLANATIONS, *JOB_EXPLANATIONS} == NEVER_SHOWN


def test_every_explained_code_is_in_the_source() -> None:
    assert {*PROBLEM_EXPLANATIONS, *JOB_EXPLANATIONS} - codes_of_the_source() == set()


def test_codes_of_responses_are_those_of_the_problem_table() -> None:
    assert (sorted(PROBLEM_EXPLANATIONS), {*PROBLEM_EXPLANATIONS} & {*JOB_EXPLANATIONS}) == (list(PROBLEM_TYPES), set())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('class E(Exception):\n    code = "new-one"', {"new-one"}),
        ('class E(Exception):\n    code: ClassVar[str] = "new-one"', {"new-one"}),
        ('class ItemCode(StrEnum):\n    NEW = "new-one"', {"new-one"}),
        ('X: Final = {"code": "new-one", "detail": ""}', {"new-one"}),
        ('X: Final = "new-one"\nf("code", X)', {"new-one"}),
        ("X = \"UPDATE job_items SET code = 'new-one'\"", {"new-one"}),
        ("X = \"jsonb_build_object('code', 'new-one')\"", {"new-one"}),
        ('update._replace(code="new-one")', {"new-one"}),
        ('X = ProblemType(422, "new-one", "Title")', {"new-one"}),
    ],
)
def test_code_is_found_however_it_is_written(tmp_path: Path, written: str, expected: set[str]) -> None:
    (tmp_path / "one.py").write_text(written)

    assert set(codes_in(tmp_path / "one.py")) == expected


def test_table_of_the_documentation_has_the_causes_and_remedies_of_the_code() -> None:
    rows = [(name(code), cause, remedy) for code, cause, remedy in table("http-api.md", "### Codes of jobs and items")]

    assert rows == [(code, *texts) for code, texts in sorted(JOB_EXPLANATIONS.items())]


def test_explanations_are_sentences() -> None:
    for code, texts in {**PROBLEM_EXPLANATIONS, **JOB_EXPLANATIONS}.items():
        assert all(text[0] == "`" or text[0].isupper() for text in texts), code
        assert all(text.endswith(".") for text in texts), code


async def test_browser_gets_a_page_and_a_program_gets_json(client: httpx.AsyncClient) -> None:
    for code, (cause, remedy) in (
        ("volume-busy", PROBLEM_EXPLANATIONS["volume-busy"]),
        ("worker-lost", JOB_EXPLANATIONS["worker-lost"]),
    ):
        page = await client.get(f"/problems/{code}", headers=HTML)
        told = await client.get(f"/problems/{code}")

        assert page.headers["content-type"].startswith("text/html")
        assert "style-src 'self'" in page.headers["content-security-policy"]
        assert all(text in page.text.replace("&#39;", "'") for text in (cause, remedy, f"<code>{code}</code>"))
        assert (told.json()["cause"], told.json()["remedy"]) == (cause, remedy)
        assert page.headers["vary"] == told.headers["vary"] == "Accept"


async def test_list_of_codes_links_each(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/problems")).json()["items"]
    page = await client.get("/problems", headers=HTML)

    assert [one["code"] for one in listed] == sorted({*PROBLEM_EXPLANATIONS, *JOB_EXPLANATIONS})
    assert re.findall(r'href="(/problems/[^"]+)"', page.text) == [one["type"] for one in listed]


async def test_status_is_null_where_a_code_is_not_of_a_response(client: httpx.AsyncClient) -> None:
    assert (await client.get("/problems/worker-lost")).json()["status"] is None
    assert (await client.get("/problems/volume-busy")).json()["status"] == 409
