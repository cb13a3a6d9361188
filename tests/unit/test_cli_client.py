"""How the command line asks the API: an answer that stays away is waited for, if there was one before."""

from collections.abc import Iterator

import httpx
import pytest

from api.cli.client import ApiCallFailed, ApiClient, ApiUnreachable

Answer = httpx.Response | Exception


class TestAWatchOutlastsARestart:
    def watch(self, answers: Iterator[Answer]) -> tuple[ApiClient, list[float]]:
        def answering(_: httpx.Request) -> httpx.Response:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        pauses: list[float] = []
        client = httpx.Client(base_url="http://cistern", transport=httpx.MockTransport(answering))
        return ApiClient(client, pause=pauses.append), pauses

    def test_of_an_api_that_was_there(self) -> None:
        away: list[Answer] = [httpx.ConnectError("refused"), httpx.Response(503), httpx.ReadTimeout("")]
        seen: list[Answer] = [
            httpx.Response(200, json={"n": 1}),
            httpx.Response(304),
            *away * 10,
            httpx.Response(200, json={"n": 2}),
        ]
        calls, pauses = self.watch(iter(seen))
        changes = calls.changes("/jobs/1")

        assert [next(changes), next(changes)] == [{"n": 1}, {"n": 2}]
        assert pauses.count(1) == 30

    def test_and_is_not_sent_again_what_it_has_seen(self) -> None:
        asked: list[httpx.Headers] = []

        def answering(request: httpx.Request) -> httpx.Response:
            asked.append(request.headers)
            return httpx.Response(200, json={}, headers={"ETag": f'"{len(asked)}"'})

        client = httpx.Client(base_url="http://cistern", transport=httpx.MockTransport(answering))
        changes = ApiClient(client, pause=lambda _: None).changes("/jobs/1")

        assert [next(changes) for _ in range(3)] == [{}] * 3
        assert [headers.get("If-None-Match") for headers in asked] == [None, '"1"', '"2"']
        assert [headers.get("Prefer") for headers in asked] == [None, "wait=1", "wait=1"]

    def test_but_not_for_ever(self) -> None:
        calls, _ = self.watch(iter([httpx.Response(200, json={}), *[httpx.ConnectError("refused")] * 31]))
        changes = calls.changes("/jobs/1")
        next(changes)

        with pytest.raises(ApiUnreachable, match="refused"):
            next(changes)

    def test_and_not_of_one_that_never_was(self) -> None:
        calls, pauses = self.watch(iter([httpx.ConnectError("refused")]))

        with pytest.raises(ApiUnreachable):
            next(calls.changes("/jobs/1"))
        assert pauses == []

    def test_and_a_job_that_is_forgotten_meanwhile_ends_it(self) -> None:
        calls, _ = self.watch(iter([httpx.Response(200, json={}), httpx.Response(404)]))
        changes = calls.changes("/jobs/1")
        next(changes)

        with pytest.raises(ApiCallFailed, match="404"):
            next(changes)
