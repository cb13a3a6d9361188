"""Long parameters are in the job or the schedule itself, and are repeated nowhere else."""

from typing import Any
from uuid import UUID, uuid4

import httpx

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.requests import Selection
from domain.services import Services
from tests.integration.bulk_builders import BY_ONE
from tests.integration.job_builders import a_queued_expand, sql
from tests.integration.schedule_builders import NIGHTLY, SCHEDULES, made

JOBS = "/api/v1/jobs"
EXPAND = "/api/v1/volumes/expand"


def long_params() -> dict[str, Any]:
    return {"by": 4096, "ids": [str(uuid4()) for _ in range(10_000)]}


def is_short(response: httpx.Response) -> bool:
    """Return whether the response has a job or a schedule without its long params."""
    return len(response.content) < 2_000 and response.json()["params"].keys() == {"omitted"}


async def test_long_parameters_are_in_the_schedule_and_not_in_the_list(client: httpx.AsyncClient) -> None:
    short = await made(client)
    params = long_params()
    long = [await made(client, name=f"long-{number}", params=params) for number in range(2)]
    listed = await client.get(SCHEDULES)
    shown = {item["id"]: item["params"] for item in listed.json()["items"]}

    assert len(listed.content) < 5_000
    assert shown[short["id"]] == short["params"]
    for schedule in long:
        assert shown[schedule["id"]].keys() == {"omitted"}
        assert (await client.get(f"{SCHEDULES}/{schedule['id']}")).json()["params"] == params


async def test_long_parameters_are_in_the_job_and_not_in_the_list(
    services: Services, client: httpx.AsyncClient
) -> None:
    ids = tuple(uuid4() for _ in range(10_000))
    short = await a_queued_expand(services)
    long = [await services.bulk.request(BulkExpandRequest(BY_ONE, selection=Selection(one))) for one in (ids, ids[:60])]
    listed = await client.get(JOBS, params={"limit": 200})
    params = {item["id"]: item["params"] for item in listed.json()["items"]}

    assert len(listed.content) < 5_000
    assert params[str(short.id)] == {"to_size": short.params["to_size"]}
    for job in long:
        assert params[str(job.id)].keys() == {"omitted"}
        whole = (await client.get(f"{JOBS}/{job.id}")).json()["params"]
        assert len(whole["selection"]["ids"]) == len(job.params["selection"]["ids"])


async def test_long_parameters_are_in_no_response_to_a_change(services: Services, client: httpx.AsyncClient) -> None:
    accepted = await client.post(EXPAND, json=long_params())
    job = accepted.json()["id"]
    cancelled = await client.post(f"{JOBS}/{job}/cancel")
    retried = await client.post(f"{JOBS}/{job}/retry")
    await sql(services, "UPDATE jobs SET status = 'cancelled', finished_at = now()")
    created = await client.post(SCHEDULES, json=NIGHTLY | {"params": long_params()})
    schedule = f"{SCHEDULES}/{created.json()['id']}"
    changed = await client.patch(schedule, json={"params": long_params()})
    run = await client.post(f"{schedule}/run")

    assert [response.status_code for response in (accepted, created, changed)] == [202, 201, 200]
    for response in (accepted, cancelled, retried, created, changed, run):
        assert is_short(response), response.text[:1000]
    whole = await client.get(f"{JOBS}/{run.json()['id']}")
    assert len(whole.json()["params"]["selection"]["ids"]) == 10_000


async def test_stored_response_of_a_key_is_short_and_is_what_a_repetition_gets(
    services: Services, client: httpx.AsyncClient
) -> None:
    for path, body in ((EXPAND, long_params()), (SCHEDULES, NIGHTLY | {"params": long_params()})):
        responses = [await client.post(path, json=body, headers={"Idempotency-Key": "one-" + path}) for _ in range(2)]

        assert is_short(responses[0])
        assert responses[1].json() == responses[0].json()
        assert responses[1].headers["Idempotency-Replayed"] == "true"
    (largest,) = await sql(services, "SELECT max(pg_column_size(body)) AS bytes FROM idempotency_keys")
    assert largest.bytes < 16 * 1024


async def test_retry_of_a_planned_bulk_job_stores_no_ids(services: Services) -> None:
    ids = tuple(uuid4() for _ in range(10_000))
    job = await services.bulk.request(BulkExpandRequest(BY_ONE, selection=Selection(ids, {"tier": "gold"})))
    await sql(services, "UPDATE jobs SET status = 'failed', finished_at = now(), total = 10000")
    retry = await services.jobs.retry(UUID(str(job.id)))

    assert retry.params["missed_by"] == str(job.id)
    assert retry.params["selection"] == job.params["selection"] | {"ids": None}
