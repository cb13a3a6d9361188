"""Lists of jobs and of schedules are of a moderate size, whatever the parameters are."""

from uuid import uuid4

import httpx

from domain.bulk.expand import BulkExpandRequest
from domain.bulk.requests import Selection
from domain.services import Services
from tests.integration.bulk_builders import BY_ONE
from tests.integration.job_builders import a_queued_expand
from tests.integration.schedule_builders import SCHEDULES, made

JOBS = "/api/v1/jobs"


async def test_long_parameters_are_in_the_schedule_and_not_in_the_list(client: httpx.AsyncClient) -> None:
    short = await made(client)
    params = {"by": 1, "ids": [str(uuid4()) for _ in range(10_000)]}
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
