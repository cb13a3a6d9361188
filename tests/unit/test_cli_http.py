"""The HTTP client of the command line, on a socket."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api.cli.http import HttpClient, InvalidUrl, NoResponse

Seen = list[dict[str, Any]]


@pytest.fixture
def seen() -> Seen:
    """The requests that the server has received."""
    return []


@pytest.fixture
def url(seen: Seen) -> Iterator[str]:
    """A server that answers 418 with a header and a body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append({"method": self.command, "path": self.path, "headers": self.headers, "body": body})
            self.send_response(418)
            self.send_header("X-Teapot", "short")
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"stout")

        do_GET = do_POST = answer  # noqa: N815 (the server's names)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_request_is_sent_with_its_parameters_headers_and_body(url: str, seen: Seen) -> None:
    client = HttpClient(f"{url}/behind/", {"Authorization": "Bearer x"})
    params = {"name": "a b", "id": ["1", "2"]}
    response = client.request("POST", "/volumes", params=params, body={"n": 1}, headers={"Prefer": "wait=1"})

    assert (response.status, response.headers["x-teapot"], response.content) == (418, "short", b"stout")
    assert not response.is_success
    (request,) = seen
    assert (request["method"], request["path"]) == ("POST", "/behind/volumes?name=a+b&id=1&id=2")
    assert json.loads(request["body"]) == {"n": 1}
    sent = {name: request["headers"][name] for name in ("Authorization", "Prefer", "Content-Type")}
    assert sent == {"Authorization": "Bearer x", "Prefer": "wait=1", "Content-Type": "application/json"}


def test_request_without_a_body_has_no_type(url: str, seen: Seen) -> None:
    HttpClient(url, {}).request("GET", "/volumes")

    assert (seen[0]["path"], seen[0]["body"], seen[0]["headers"]["Content-Type"]) == ("/volumes", b"", None)


@pytest.mark.parametrize("key", ["two\nlines", "\N{SNOWMAN}"])
def test_key_that_cannot_be_sent_is_an_error(url: str, key: str) -> None:
    with pytest.raises(NoResponse):
        HttpClient(url, {"Authorization": key}).request("GET", "/volumes")


@pytest.mark.parametrize("url", ["ftp://here", "here", "", "http://", "http://here:there", "http://[::1"])
def test_what_is_no_url_of_an_http_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrl, match="invalid URL"):
        HttpClient(url, {})


def test_server_that_speaks_no_http_is_no_response() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.StreamRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(NoResponse):
            HttpClient(f"http://127.0.0.1:{server.server_address[1]}", {}).request("GET", "/")
        thread.join()
