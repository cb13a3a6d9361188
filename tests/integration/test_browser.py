"""A page of another site, in a real browser, changes nothing and reads nothing."""

import asyncio
import http.server
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Scope

from api import middleware
from api.main import create_app
from api.problems import CROSS_SITE
from api.request_headers import RequestHeaders
from api.sites import SiteRefusal, site_refusal
from domain.services import Services
from tests.integration.job_builders import sql
from tests.support.servers import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Sends what a page can send without asking: a request without CORS, and a form that submits itself into a frame.
PAGE = """
<title>waiting</title>
<iframe name="frame"></iframe>
<form method="post" enctype="text/plain" target="frame" action="{api}/api/v0/volumes/expand">
  <input name='{{"percent":10,"x":"' value='"}}'>
</form>
<script>
  document.forms[0].submit();
  fetch("{api}/api/v0/volumes/expand", {{method: "POST", mode: "no-cors", body: '{{"percent":10}}'}})
    .catch(() => null)
    .then(() => fetch("{api}/api/v1/volumes"))
    .then(response => response.text(), error => "refused by the browser")
    .then(text => {{ document.title = text; }});
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture
async def server(services: Services) -> AsyncIterator[uvicorn.Server]:
    """The API on a free port, in this process."""
    async with serving(create_app(lambda: nullcontext(services))) as server:
        yield server


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of requests that the gate has refused because of the site that they came from."""
    paths: list[str] = []
    refusal = site_refusal

    def note(scope: Scope, headers: RequestHeaders, allowed_hosts: tuple[str, ...]) -> SiteRefusal | None:
        result = refusal(scope, headers, allowed_hosts)
        if result is not None and result.problem is CROSS_SITE:
            paths.append(scope["path"])
        return result

    monkeypatch.setattr(middleware, "site_refusal", note)
    return paths


def port_of(server: uvicorn.Server) -> int:
    return int(server.servers[0].sockets[0].getsockname()[1])


@contextmanager
def pages(folder: Path) -> Iterator[int]:
    """Serve a folder on a free port."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def opened(url: str, profile: Path) -> str:
    """Open a page, and return its document after five seconds of the browser's own clock."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=5000")
    names = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    command = [str(CHROMIUM), *options, names, f"--user-data-dir={profile}", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


async def test_page_of_another_site_changes_and_reads_nothing(
    services: Services, server: uvicorn.Server, refused: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "index.html").write_text(PAGE.format(api=f"http://127.0.0.1:{port_of(server)}"))
    with pages(folder) as port:
        document = await asyncio.to_thread(opened, f"http://evil.example:{port}/", tmp_path / "profile")

    assert "<title>refused by the browser</title>" in document
    assert refused == ["/api/v0/volumes/expand"] * 2, "the form and the fetch have reached the gate"
    assert await sql(services, "SELECT count(*) FROM jobs") == [(0,)]


async def test_page_whose_name_leads_to_the_api_reads_nothing(server: uvicorn.Server, tmp_path: Path) -> None:
    url = f"http://evil.example:{port_of(server)}/api/v1/volumes"

    assert "host-not-allowed" in await asyncio.to_thread(opened, url, tmp_path / "profile")
