"""A page of another site, in a real browser, changes nothing and reads nothing."""

import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.acceptance.cluster import Cluster
from tests.support.keys import BEARER

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


@contextmanager
def serving(folder: Path) -> Iterator[int]:
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


def test_page_of_another_site_changes_and_reads_nothing(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = cluster.start_api(options=("--access-log",))
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "index.html").write_text(PAGE.format(api=address))
    with serving(pages) as port:
        document = opened(f"http://evil.example:{port}/", tmp_path / "profile")

    assert "<title>refused by the browser</title>" in document
    requests = [line for line in capfd.readouterr().out.splitlines() if "POST /api/v0/volumes/expand" in line]
    assert len(requests) == 2, document
    assert all("403" in line for line in requests)
    with httpx.Client(base_url=address, headers=BEARER) as client:
        assert client.get("/api/v1/jobs").json()["items"] == []


def test_page_whose_name_leads_to_the_api_reads_nothing(cluster: Cluster, tmp_path: Path) -> None:
    port = httpx.URL(cluster.start_api()).port

    document = opened(f"http://evil.example:{port}/api/v1/volumes", tmp_path / "profile")

    assert "host-not-allowed" in document
