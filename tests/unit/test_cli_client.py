"""The HTTP client of the command line: lists are read to their end, and a watch outlasts a restart of the API."""

from collections.abc import Iterator

import httpx
import pytest

from api.cli.client import ApiCallFailed, ApiClient, ApiUnreachable
from tests.unit.cli_terminal import FakeHttp


def test_all_objects_of_a_list_are_returned_however_many_pages_it_has() -> None:
    def page(request: httpx.Request) -> httpx.Response:
        number, size = int(request.url.params.get("cursor", 0)), int(request.url.params["limit"])
        items = [{"n": number * size + n} for n in range(size)]
        return httpx.Response(200, json={"items": items, "next_cursor": str(number + 1) if number < 6 else None})

    found = ApiClient(FakeHttp(page)).list_all("/snapshots", name="nightly")

    assert [one["n"] for one in found] == list(range(1400))


class TestChanges:
    def watch(self, responses: Iterator[httpx.Response | Exception]) -> tuple[ApiClient, list[float]]:
        def handle(_: httpx.Request) -> httpx.Response:
            response = next(responses)
            if isinstance(response, Exception):
                raise response
            return response

        pauses: list[float] = []
        return ApiClient(FakeHttp(handle), pause=pauses.append), pauses

    def test_changes_continue_after_an_outage(self) -> None:
        outage: list[httpx.Response | Exception] = [
            httpx.ConnectError("refused"),
            httpx.Response(503),
            httpx.ReadTimeout(""),
        ]
        responses: list[httpx.Response | Exception] = [
            httpx.Response(200, json={"n": 1}),
            httpx.Response(304),
            *outage * 10,
            httpx.Response(200, json={"n": 2}),
        ]
        client, pauses = self.watch(iter(responses))
        changes = client.changes("/jobs/1")

        assert [next(changes), next(changes)] == [{"n": 1}, {"n": 2}]
        assert pauses.count(1) == 30

    def test_changes_send_the_last_etag(self) -> None:
        received: list[httpx.Headers] = []

        def handle(request: httpx.Request) -> httpx.Response:
            received.append(request.headers)
            return httpx.Response(200, json={}, headers={"ETag": f'"{len(received)}"'})

        changes = ApiClient(FakeHttp(handle), pause=lambda _: None).changes("/jobs/1")

        assert [next(changes) for _ in range(3)] == [{}] * 3
        assert [headers.get("If-None-Match") for headers in received] == [None, '"1"', '"2"']
        assert [headers.get("Prefer") for headers in received] == [None, "wait=1", "wait=1"]

    def test_changes_fail_after_30_retries(self) -> None:
        client, _ = self.watch(iter([httpx.Response(200, json={}), *[httpx.ConnectError("refused")] * 31]))
        changes = client.changes("/jobs/1")
        next(changes)

        with pytest.raises(ApiUnreachable, match="refused"):
            next(changes)

    def test_first_request_is_not_retried(self) -> None:
        client, pauses = self.watch(iter([httpx.ConnectError("refused")]))

        with pytest.raises(ApiUnreachable):
            next(client.changes("/jobs/1"))
        assert pauses == []

    def test_changes_fail_if_the_object_is_deleted(self) -> None:
        client, _ = self.watch(iter([httpx.Response(200, json={}), httpx.Response(404)]))
        changes = client.changes("/jobs/1")
        next(changes)

        with pytest.raises(ApiCallFailed, match="404"):
            next(changes)
