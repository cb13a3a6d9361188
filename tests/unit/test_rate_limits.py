"""Rate limits: what a caller may use of one process, what it is told, and that no route is forgotten."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from api import rate_limits
from api.access import ROUTES
from api.main import create_app
from api.rate_limits import WEIGHTS, RateLimiter, weight_of
from domain.access.model import Role
from domain.access.secret import new_secret
from domain.db.base import DEFAULT_PROJECT
from domain.jobs.states import JobStatus
from domain.settings import Settings
from tests.support.http import client_of
from tests.unit.fake_keys import bearer
from tests.unit.fakes import NOON, FakeServices, job_row

V1 = "/api/v1"
INVALID = {"Authorization": f"Bearer {new_secret().text}"}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    """Ten units per second: a hundred at once."""
    return RateLimiter(10, clock=clock)


def spend_all(limiter: RateLimiter, caller: UUID | str, units: int) -> int:
    """Send requests until one is refused, and return how many passed."""
    passed = 0
    while limiter.spend(caller, units).allowed:
        passed += 1
    return passed


@pytest.mark.parametrize(("units", "requests"), [(1, 100), (5, 20), (10, 10), (50, 2), (3, 33)])
def test_ten_seconds_worth_passes_at_once(limiter: RateLimiter, units: int, requests: int) -> None:
    assert spend_all(limiter, "a", units) == requests


def test_units_come_back_one_by_one_and_no_more_than_a_burst(limiter: RateLimiter, clock: Clock) -> None:
    spend_all(limiter, "a", 1)
    clock.now += 0.5
    assert spend_all(limiter, "a", 1) == 5
    clock.now += 9.9
    assert spend_all(limiter, "a", 1) == 99
    clock.now += 3600
    assert spend_all(limiter, "a", 1) == 100


def test_steady_caller_at_the_limit_is_never_refused(limiter: RateLimiter, clock: Clock) -> None:
    for _ in range(10_000):
        clock.now += 0.1
        assert limiter.spend("a", 1).allowed


def test_refused_request_takes_nothing_and_says_when_it_passes(limiter: RateLimiter, clock: Clock) -> None:
    assert limiter.spend("a", 50) == (True, 50, 5)
    assert limiter.spend("a", 10) == (True, 40, 6)
    for _ in range(3):
        assert limiter.spend("a", 50) == (False, 40, 1)
    assert limiter.spend("a", 40) == (True, 0, 10)
    assert limiter.spend("a", 50) == (False, 0, 5)

    clock.now += 5
    assert limiter.spend("a", 50).allowed


def test_callers_do_not_share_units(limiter: RateLimiter) -> None:
    one, other = uuid4(), uuid4()
    assert [spend_all(limiter, caller, 10) for caller in (one, other, "10.0.0.1", "10.0.0.2")] == [10] * 4
    assert spend_all(limiter, one, 1) == 0


def test_keys_of_a_project_share_ten_times_what_one_has(limiter: RateLimiter, clock: Clock) -> None:
    one, other = uuid4(), uuid4()
    passed = sum(limiter.spend(uuid4(), 10, project=one).allowed for _ in range(200))
    refused = limiter.spend(uuid4(), 10, project=one)

    assert passed == 100
    assert refused == (False, 0, 1)
    assert limiter.spend(uuid4(), 10, project=other) == (True, 90, 1)
    assert limiter.spend(uuid4(), 10) == (True, 90, 1)
    clock.now += 1
    assert sum(limiter.spend(uuid4(), 10, project=one).allowed for _ in range(200)) == 10


def test_request_that_its_project_cannot_make_takes_nothing_from_its_key(limiter: RateLimiter, clock: Clock) -> None:
    key, project = uuid4(), uuid4()
    while limiter.spend(uuid4(), 50, project=project).allowed:
        pass
    for _ in range(5):
        assert not limiter.spend(key, 50, project=project).allowed
    clock.now += 10

    assert [limiter.spend(key, 50, project=project).allowed for _ in range(3)] == [True, True, False]


def test_smallest_limit_lets_the_largest_request_pass(clock: Clock) -> None:
    limiter = RateLimiter(5, clock=clock)
    assert limiter.spend("a", 50) == (True, 0, 10)
    clock.now += 9.9
    assert not limiter.spend("a", 50).allowed
    clock.now += 0.1
    assert limiter.spend("a", 50).allowed


def test_callers_that_were_seen_first_are_forgotten(limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rate_limits._MAX_CALLERS == 10_000
    monkeypatch.setattr(rate_limits, "_MAX_CALLERS", 3)
    for caller in ("a", "b", "c"):
        spend_all(limiter, caller, 10)
    limiter.spend("a", 1)
    for number in range(2):
        limiter.spend(f"another-{number}", 1)

    assert len(limiter._restored_at) == 3
    assert spend_all(limiter, "a", 10) == 0
    assert spend_all(limiter, "b", 10) == 10


def test_weights_follow_from_what_a_route_does() -> None:
    """A route whose weight is neither of these needs a line here, and a thought."""
    assert {path: set(methods) for path, methods in WEIGHTS.items()} == {path: set(one) for path, one in ROUTES.items()}
    for path, weights in WEIGHTS.items():
        for method, weight in weights.items():
            if path in ("/healthz", "/readyz"):
                expected = 0
            elif method != "GET":
                many_jobs = ("/jobs/cancel", "/jobs/retry")
                is_bulk = path.endswith(("/volumes/expand", "/volumes/snapshots", "/schedules/{}/run", *many_jobs))
                expected = 50 if is_bulk else 10
            else:
                expected = 5 if path.startswith("/api/") and not path.endswith("{}") else 1
            assert weight == expected, (method, path)


def test_route_of_an_unforeseen_method_has_no_weight() -> None:
    with pytest.raises(ValueError, match="PUT /api/v1/volumes has no weight"):
        rate_limits._weight("PUT", f"{V1}/volumes")


def test_requests_that_no_route_answers_have_a_weight() -> None:
    job = f"{V1}/jobs/{uuid4()}"
    requests = [("HEAD", f"{V1}/jobs"), ("HEAD", job), ("GET", "/nowhere"), ("PUT", job), ("BREW", f"{V1}/volumes")]

    assert [weight_of(*request) for request in requests] == [5, 1, 1, 1, 1]


@pytest.fixture
async def app(fake: FakeServices, limiter: RateLimiter) -> AsyncIterator[FastAPI]:
    app = create_app(fake.factory())
    async with client_of(app):
        app.state.rate_limiter = limiter
        yield app


@pytest.fixture
async def limited(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key of an API that has a limit."""
    transport = httpx.ASGITransport(app, client=("10.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_hot_route_is_limited_and_says_what_is_left(
    fake: FakeServices, limited: httpx.AsyncClient, clock: Clock
) -> None:
    job = fake.jobs.add(job_row(status=JobStatus.SUCCEEDED, finished_at=NOON))
    path, viewer = f"{V1}/jobs/{job.id}", bearer(Role.VIEWER)
    responses = [await limited.get(path, headers=viewer) for _ in range(101)]

    assert [response.status_code for response in responses] == [200] * 100 + [429]
    assert {response.headers["RateLimit-Policy"] for response in responses} == {'"default";q=100;w=10'}
    assert [responses[n].headers["RateLimit"] for n in (0, 99)] == ['"default";r=99;t=1', '"default";r=0;t=10']
    refused = responses[-1]
    assert (refused.json()["code"], refused.headers["Retry-After"]) == ("rate-limited", "1")
    assert refused.headers["RateLimit"] == '"default";r=0;t=1'
    assert refused.json()["detail"] == "This request takes 1 units, and 0 are left; try again in 1 s."
    assert (await limited.get(path, headers=bearer(Role.SYSTEM))).status_code == 200, "another key"
    clock.now += 1
    assert (await limited.get(path, headers=viewer)).status_code == 200


async def test_refused_change_is_not_made(fake: FakeServices, limited: httpx.AsyncClient) -> None:
    owner = bearer(Role.OWNER)
    statuses = [
        (await limited.post(f"{V1}/volumes", json={"name": f"a{n}", "size": 4096}, headers=owner)).status_code
        for n in range(11)
    ]

    assert statuses == [202] * 10 + [429]
    assert len(fake.volumes.rows) == 10


async def test_bulk_requests_and_dry_runs_take_fifty(limited: httpx.AsyncClient) -> None:
    owner = bearer(Role.OWNER)
    bodies = [{"percent": 10}, {"percent": 10, "dry_run": True}, {"percent": 10}]
    statuses = [(await limited.post(f"{V1}/volumes/expand", json=body, headers=owner)).status_code for body in bodies]

    assert statuses == [202, 200, 429]


async def test_requests_without_a_valid_key_count_for_their_address(limited: httpx.AsyncClient) -> None:
    kinds = [({}, "/problems"), ({}, f"{V1}/jobs/{uuid4()}"), (INVALID, f"{V1}/jobs/{uuid4()}"), ({}, "/nowhere")]
    for _ in range(25):
        for headers, path in kinds:
            assert (await limited.get(path, headers=headers)).status_code in (200, 401, 404)

    for headers, path in kinds:
        assert (await limited.get(path, headers=headers)).status_code == 429
    assert (await limited.get(f"{V1}/volumes", headers=bearer(Role.VIEWER))).status_code == 200


async def test_request_counts_for_the_project_of_its_key_unless_that_is_of_the_system(
    limited: httpx.AsyncClient, limiter: RateLimiter
) -> None:
    while limiter.spend(uuid4(), 50, project=DEFAULT_PROJECT).allowed:
        pass

    statuses = [(await limited.get(f"{V1}/volumes", headers=bearer(role))).status_code for role in Role]
    assert statuses == [429, 429, 429, 200]


async def test_refusal_for_its_role_counts_for_the_key(limited: httpx.AsyncClient) -> None:
    statuses = [(await limited.get(f"{V1}/keys", headers=bearer(Role.VIEWER))).status_code for _ in range(21)]

    assert statuses == [403] * 20 + [429]
    assert (await limited.get("/problems")).status_code == 200


async def test_probes_are_never_refused(limited: httpx.AsyncClient) -> None:
    while (await limited.get("/problems")).status_code == 200:
        pass

    for path in ("/healthz", "/readyz"):
        response = await limited.get(path)
        assert (response.status_code, "ratelimit" in response.headers) == (200, False)


async def test_without_the_setting_nothing_is_counted(client: httpx.AsyncClient) -> None:
    response = await client.get("/problems")

    assert not {"ratelimit", "ratelimit-policy"} & set(response.headers)


async def test_setting_is_read_when_the_application_starts(fake: FakeServices) -> None:
    fake.settings = Settings(rate_limit=7.5, _env_file=None)
    async with client_of(create_app(fake.factory())) as client:
        assert (await client.get("/problems")).headers["RateLimit-Policy"] == '"default";q=75;w=10'
