"""The API as the command line calls it, and its errors."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final, NamedTuple

from api.cli.http import NOT_MODIFIED, TIMEOUT_SECONDS, HttpClient, InvalidUrl, NoResponse, Response
from api.cli.key_file import authorization
from domain.errors import CisternError, ConfigurationError

_PAGE_SIZE: Final = 200
#: The codes of requests that are refused as long as another job, which the problem names, holds their volume.
_BUSY: Final = frozenset({"volume-busy", "snapshot-busy"})
#: Seconds that a poll asks the server to wait (`Prefer: wait=N`), and that the client waits while the API is away.
_POLL_SECONDS: Final = 1
#: Minimum pause between two polls, for servers that ignore `Prefer`.
_PAUSE_SECONDS: Final = 0.2
#: Retries of a watch, one per second, while the API is away: enough for a deploy.
_MAX_RETRIES: Final = 30

JsonObject = dict[str, Any]


class CommandFailed(CisternError):
    """The command could not be carried out."""

    code = "command-failed"
    #: Not 1: the job that the command is about may have succeeded.
    exit_status: ClassVar[int] = 2


class ApiCallFailed(CommandFailed):
    """The API rejected the request, or the response is not one of Cistern."""

    code = "call-failed"

    def __init__(self, message: str, problem: "JsonObject | None" = None) -> None:
        """Create the error; ``problem`` is that of the response, None if it has none."""
        super().__init__(message)
        self.problem = problem or {}

    @property
    def problem_code(self) -> str:
        """The code of the problem, or an empty text."""
        return str(self.problem.get("code", ""))


class ApiUnreachable(ApiCallFailed):
    """The API does not respond."""

    code = "api-unreachable"


class ApiObject(JsonObject):
    """An object in a response. A missing member raises ApiCallFailed: the server is not Cistern."""

    def __missing__(self, name: str) -> Any:
        raise ApiCallFailed(f"the server is not Cistern's API: its response has no member `{name}`")


class Listing(NamedTuple):
    """The first objects of a list, and whether there are more."""

    items: list[JsonObject]
    has_more: bool


class ApiClient:
    """The operations of the HTTP API that the command line needs."""

    def __init__(self, client: HttpClient, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._pause = pause

    def get(self, path: str, **params: Any) -> JsonObject:
        """Get one object."""
        return self.call("GET", path, params=params)

    def get_to_change(self, path: str) -> tuple[JsonObject, dict[str, str]]:
        """Get one object, and headers for a change of it, which is refused if it has changed meanwhile."""
        response = self._send("GET", path)
        return self._parse(response), {"If-Match": response.headers.get("etag", "*")}

    def call(self, method: str, path: str, body: Any = None, **request: Any) -> JsonObject:
        """Send a request, whose response is one object."""
        return self._parse(self._send(method, path, body=body, **request))

    def delete(self, path: str) -> None:
        """Delete an object, without a job; the response is empty."""
        self._send("DELETE", path)

    def list_first(self, path: str, limit: int, **params: Any) -> Listing:
        """Return up to ``limit`` objects of a list, which is read page by page."""
        found: list[JsonObject] = []
        cursor: JsonObject = {}
        while True:
            page = self.get(path, **params, limit=min(limit - len(found), _PAGE_SIZE), **cursor)
            if not isinstance(page["items"], list) or not all(isinstance(one, ApiObject) for one in page["items"]):
                raise ApiCallFailed(f"the server at {self._client.base_url} is not Cistern's API: malformed list")
            found += page["items"]
            if page["next_cursor"] is None or len(found) >= limit:
                return Listing(found, has_more=page["next_cursor"] is not None)
            cursor = {"cursor": page["next_cursor"]}

    def list_all(self, path: str, **params: Any) -> list[JsonObject]:
        """Return all objects of a list, which is read page by page."""
        return self.list_first(path, sys.maxsize, **params).items

    def changes(self, path: str) -> Iterator[JsonObject]:
        """Yield an object now and whenever it changes; an API that is away in between is polled until it is back."""
        response = self._send("GET", path)
        yield self._parse(response)
        retries = 0
        while True:
            self._pause(_PAUSE_SECONDS)
            headers = {"Prefer": f"wait={_POLL_SECONDS}", "If-None-Match": response.headers.get("etag", "")}
            try:
                latest = self._send("GET", path, headers=headers)
            except ApiUnreachable:
                retries += 1
                if retries > _MAX_RETRIES:
                    raise
                self._pause(_POLL_SECONDS)
                continue
            retries = 0
            if latest.status != NOT_MODIFIED:
                response = latest
                yield self._parse(response)

    def _send(self, method: str, path: str, **request: Any) -> Response:
        try:
            response = self._client.request(method, f"/api/v1{path}", **request)
        except NoResponse as error:
            raise ApiUnreachable(f"no API responds at {self._client.base_url}: {error.message}") from error
        if response.is_success or response.status == NOT_MODIFIED:
            return response
        failed = ApiUnreachable if response.status in (502, 503, 504) else ApiCallFailed
        problem = _problem(response)
        if problem is None:
            request_line = f"{method} {self._client.base_url}/api/v1{path}"
            raise failed(f"{request_line} returned status {response.status}, not from Cistern's API")
        raise failed(_error_line(problem), problem)

    def _parse(self, response: Response) -> JsonObject:
        with suppress(ValueError):
            body = json.loads(response.content, object_hook=ApiObject)
            if isinstance(body, ApiObject):
                return body
        raise ApiCallFailed(f"the server at {self._client.base_url} is not Cistern's API")


def when_free(request: Callable[[], JsonObject], follow: Callable[[str], None]) -> JsonObject:
    """Return the response to a request for a job; while another job is in the way, follow that one and try again.

    ``follow`` waits for the job with this id, and raises an error when that has taken long enough.

    Raises:
        ApiCallFailed: the request is refused for another reason.
    """
    while True:
        try:
            return request()
        except ApiCallFailed as error:
            job_id = error.problem.get("job_id")
            if error.problem_code not in _BUSY or job_id is None:
                raise
        follow(job_id)


def open_api(url: str, **options: float) -> ApiClient:
    """Return a client of the API at ``url``; it connects with its first request. The options are those of `connect`.

    Raises:
        ApiCallFailed: ``url`` is malformed, the key file is unsafe, or ``CISTERN_CA_FILE`` is no file of certificates.
    """
    try:
        return ApiClient(connect(url, **options))
    except (InvalidUrl, ConfigurationError) as error:
        raise ApiCallFailed(error.message) from error
    except OSError as error:
        raise ApiCallFailed(
            f"CISTERN_CA_FILE: {error.strerror or error}: {os.environ.get('CISTERN_CA_FILE')}"
        ) from error


def connect(url: str, *, timeout: float = TIMEOUT_SECONDS) -> HttpClient:
    """Create the HTTP client; ``timeout`` in seconds is the limit for each request.

    ``CISTERN_CA_FILE`` has the certificates that are trusted for https; without it those of the system are, or those of
    ``SSL_CERT_FILE``.
    """
    return HttpClient(url, authorization(url), ca_file=os.environ.get("CISTERN_CA_FILE") or None, timeout=timeout)


def _problem(response: Response) -> JsonObject | None:
    """Return the problem that a response of Cistern's API has."""
    with suppress(ValueError):
        problem = json.loads(response.content)
        if isinstance(problem, dict) and {"code", "detail", "request_id"} <= problem.keys():
            return problem
    return None


def _error_line(problem: JsonObject) -> str:
    """Render a problem in one line: the invalid fields or the detail, the code and the request id."""
    fields = "; ".join(f"{one['field']}: {one['detail']}" for one in problem.get("errors") or ())
    return f"{fields or problem['detail']} ({problem['code']}, request {problem['request_id']})"
