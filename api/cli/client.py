"""How the command line asks the HTTP API, and how it says that it asked in vain."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Annotated, Any, Final

import httpx
import typer

from domain.errors import CisternError

DEFAULT_URL: Final = "http://127.0.0.1:8000"
_CALLER: Final = {"X-Cistern-Caller": "cistern"}
_PAGE: Final = 200
_TIMEOUT_SECONDS: Final = 15.0
_POLL_SECONDS: Final = 1
#: At least so long between two looks: a server that knows no `Prefer` answers at once.
_PAUSE_SECONDS: Final = 0.2
#: How often an API that was there is asked again when it is away, a second each: a deploy takes no longer.
_PATIENCE: Final = 30

Thing = dict[str, Any]
Url = Annotated[str, typer.Option(envvar="CISTERN_URL", help="Where the API answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print lines of JSON, as the API has it.")]


class ApiCallFailed(CisternError):
    """The API refused, or answered as no Cistern does."""

    code = "call-failed"


class ApiUnreachable(ApiCallFailed):
    """The API does not answer."""

    code = "api-away"


class ApiObject(Thing):
    """An object as the API says it; what every Cistern says, and this one does not, is missed in one line."""

    def __missing__(self, name: str) -> Any:
        raise ApiCallFailed(f"what answers is not Cistern's API: it says nothing of `{name}`")


class ApiClient:
    """The HTTP API, as the command line uses it."""

    def __init__(self, client: httpx.Client, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._pause = pause

    def get(self, path: str, **params: Any) -> Thing:
        """Look at something."""
        return self._read(self._send("GET", path, params=params))

    def post(self, path: str) -> Thing:
        """Have something done that needs no words."""
        return self._read(self._send("POST", path))

    def patch(self, path: str, changes: Thing) -> Thing:
        """Change something."""
        return self._read(self._send("PATCH", path, json=changes))

    def listed(self, path: str, limit: int, **params: Any) -> Iterator[Thing]:
        """List up to ``limit`` things, page by page."""
        return islice(self._pages(path, params | {"limit": min(limit, _PAGE)}), limit)

    def changes(self, path: str) -> Iterator[Thing]:
        """Look at something now, and again whenever it has changed; an API that goes away meanwhile is waited for."""
        answer = self._send("GET", path)
        while True:
            yield self._read(answer)
            answer = self._next(path, answer.headers.get("ETag", ""))

    def _next(self, path: str, tag: str) -> httpx.Response:
        headers = {"Prefer": f"wait={_POLL_SECONDS}", "If-None-Match": tag}
        away = 0
        while True:
            self._pause(_PAUSE_SECONDS)
            try:
                answer = self._send("GET", path, headers=headers)
            except ApiUnreachable:
                away += 1
                if away > _PATIENCE:
                    raise
                self._pause(_POLL_SECONDS)
            else:
                away = 0
                if answer.status_code != httpx.codes.NOT_MODIFIED:
                    return answer

    def _pages(self, path: str, params: Thing) -> Iterator[Thing]:
        cursor: Thing = {}
        while True:
            page = self.get(path, **params, **cursor)
            if not isinstance(page["items"], list) or not all(isinstance(one, ApiObject) for one in page["items"]):
                raise ApiCallFailed(f"what answers at {self._client.base_url} lists things as no Cistern does")
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            cursor = {"cursor": page["next_cursor"]}

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, f"/api/v1{path}", **request)
        except httpx.HTTPError as error:
            raise ApiUnreachable(
                f"no API answers at {self._client.base_url}: {str(error) or type(error).__name__}"
            ) from error
        if answer.is_success or answer.status_code == httpx.codes.NOT_MODIFIED:
            return answer
        raise (ApiUnreachable if answer.status_code in (502, 503, 504) else ApiCallFailed)(_problem(answer))

    def _read(self, answer: httpx.Response) -> Thing:
        with suppress(ValueError):
            found = answer.json(object_hook=ApiObject)
            if isinstance(found, ApiObject):
                return found
        raise ApiCallFailed(f"what answers at {self._client.base_url} is not Cistern's API")


@contextmanager
def api_client(url: str) -> Iterator[ApiClient]:
    """Have the API at ``url`` at hand.

    Raises:
        CallFailed: ``url`` is none.
    """
    try:
        client = connect(url)
    except httpx.InvalidURL as error:
        raise ApiCallFailed(f"{url!r} is no URL: {error}") from error
    with client:
        yield ApiClient(client)


def connect(url: str) -> httpx.Client:
    """Open a client, which connects when it is used."""
    return httpx.Client(base_url=url, headers=_CALLER, timeout=_TIMEOUT_SECONDS, trust_env=False)


def _problem(answer: httpx.Response) -> str:
    """Say in one line why the API refused: its own words, with the fields that they are about."""
    try:
        problem = answer.json()
        fields = "; ".join(f"{one['field']}: {one['detail']}" for one in problem.get("errors") or ())
        return f"{fields or problem['detail']} ({problem['code']}, request {problem['request_id']})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{answer.request.method} {answer.url} was answered with {answer.status_code}, and not by Cistern's API"
