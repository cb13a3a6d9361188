"""The page /docs: its files are served by the API itself, and a browser may load nothing else."""

import hashlib
import re
import tomllib
from pathlib import Path

import httpx
import pytest

from api.main import create_app
from api.security_headers import PAGE_POLICY, POLICY
from tests.support.http import client_of
from tests.unit.fakes import FakeServices

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "api" / "static" / "swagger-ui"


async def get(path: str) -> httpx.Response:
    async with client_of(create_app(FakeServices().factory())) as client:
        return await client.get(path)


async def test_page_loads_only_files_that_the_api_serves() -> None:
    page = await get("/docs")
    paths = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert (page.status_code, len(paths)) == (200, 4)
    assert all(path.startswith("/docs/") for path in paths)
    for path in paths:
        response = await get(path)
        assert (response.status_code, len(response.content) > 300) == (200, True)
        assert response.headers["content-type"].partition(";")[0] in ("text/javascript", "text/css", "image/png")


async def test_page_has_no_inline_script_style_or_handler_and_no_other_origin() -> None:
    text = (await get("/docs")).text

    assert re.findall(r"<script(?![^>]* src=)", text) == []
    assert re.findall(r"<style|style=|\bon\w+=|https?:|//[a-z]", text) == []


async def test_try_it_out_is_offered_for_reading_only() -> None:
    assert 'supportedSubmitMethods: ["get"]' in (await get("/docs/docs.js")).text


@pytest.mark.parametrize("name", ["README.md", "..%2f..%2fmain.py", "LICENSE", "oauth2-redirect"])
async def test_no_other_file_is_served(name: str) -> None:
    assert (await get(f"/docs/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("folder", "own"),
    [
        (FOLDER, {"README.md", "index.html", "docs.js"}),
        (ROOT / "api" / "dashboard" / "static" / "uplot", {"README.md"}),
    ],
    ids=["swagger-ui", "uplot"],
)
def test_vendored_files_are_those_that_the_readme_names(folder: Path, own: set[str]) -> None:
    sums = re.findall(r"^    ([0-9a-f]{64})  (\S+)$", (folder / "README.md").read_text(), re.MULTILINE)

    assert {name for _, name in sums} | own == {path.name for path in folder.iterdir()}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for digest, name in sums)


def test_files_are_part_of_the_installed_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]

    assert data["api"] == ["dashboard/static/*", "dashboard/static/*/*", "dashboard/templates/*", "static/*/*"]


def test_policy_allows_nothing_inline_nothing_foreign_and_no_frame() -> None:
    policy = dict(part.split(" ", 1) for part in PAGE_POLICY.split("; "))

    assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
    assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in PAGE_POLICY


async def test_only_the_page_may_load_anything(client: httpx.AsyncClient) -> None:
    others = dict.fromkeys(("/docs/docs.js", "/docs/", "/healthz", "/api/v1/jobs"), POLICY)
    for path, policy in {"/docs": PAGE_POLICY, **others}.items():
        headers = (await client.get(path)).headers
        assert headers.get_list("content-security-policy") == [policy], path
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer"), path
