"""The routes of webhooks, with the roles of PostgreSQL that the API and the workers have."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from domain.db.migrations.grants import Part
from domain.jobs.webhooks.model import MAX_WEBHOOKS
from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.job_builders import sql
from tests.integration.project_builders import a_project, two_projects
from tests.integration.webhook_builders import URL, a_failed_job, deliveries, event_types
from tests.support.http import client_of
from tests.support.receiver import receiving
from tests.support.roles import ROLES, as_role
from tests.support.worker import running_worker

WEBHOOKS = "/api/v1/webhooks"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that let webhooks go to this machine."""
    return settings.model_copy(update={"webhook_hosts": ("127.0.0.1", "hooks.example.org")})


@pytest.fixture
def of_workers(settings: Settings) -> Settings:
    """The settings of a worker, with its role."""
    return settings.model_copy(update={"database_url": as_role(settings.database_url, ROLES[Part.WORKER])})


@pytest.fixture
async def services(settings: Settings, of_workers: Settings) -> AsyncIterator[Services]:
    """The services of the API, with its role, once a worker has adopted the backend."""
    async with open_services(of_workers, adopt=True):
        pass
    of_api = settings.model_copy(update={"database_url": as_role(settings.database_url, ROLES[Part.API])})
    async with open_services(of_api) as services:
        yield services


async def created(client: httpx.AsyncClient, url: str = URL, **members: Any) -> dict[str, Any]:
    answer = await client.post(WEBHOOKS, json={"url": url, **members})
    assert answer.status_code == 201, answer.text
    webhook: dict[str, Any] = answer.json()
    return webhook


async def test_secret_is_shown_once(client: httpx.AsyncClient) -> None:
    webhook = await created(client, events=["job.failed", "job.failed"])
    secret = webhook.pop("secret")

    assert secret.startswith("whsec_")
    assert webhook["events"] == ["job.failed"]
    assert (await client.get(WEBHOOKS)).json()["items"] == [webhook]
    changed = (await client.patch(f"{WEBHOOKS}/{webhook['id']}", json={"enabled": False})).json()
    assert changed == webhook | {"enabled": False}


async def test_test_reaches_the_receiver_through_both_roles(
    client: httpx.AsyncClient, services: Services, of_workers: Settings
) -> None:
    async with receiving() as receiver, running_worker(of_workers):
        webhook = await created(client, receiver.url)
        answer = await client.post(f"{WEBHOOKS}/{webhook['id']}/test", headers={"Prefer": "wait=20"})
    (request,) = receiver.requests

    assert (answer.status_code, answer.json()["status"]) == (202, "succeeded")
    assert request.verified(webhook["secret"])["type"] == "webhook.test"
    assert request.headers[":line"] == "POST /hook?token=1 HTTP/1.1"
    assert "token" not in answer.text


async def test_failed_delivery_is_listed_and_sent_again_under_its_first_id(
    client: httpx.AsyncClient, settings: Settings, of_workers: Settings
) -> None:
    async with receiving("410 Gone") as receiver, open_services(settings) as owner, running_worker(of_workers):
        await created(client, receiver.url)
        failed = await a_failed_job(owner)
        (delivery,) = (await client.get("/api/v1/jobs?kind=webhook.deliver")).json()["items"]
        first = await client.get(f"/api/v1/jobs/{delivery['id']}", headers={"Prefer": "wait=20"})
        again = await client.post(f"/api/v1/jobs/{delivery['id']}/retry", headers={"Prefer": "wait=20"})

    assert (first.json()["status"], first.json()["error"]["code"]) == ("failed", "webhook-gone")
    assert (again.json()["status"], again.json()["retry_of"]) == ("succeeded", delivery["id"])
    assert [request.headers["webhook-id"] for request in receiver.requests] == [str(failed)] * 2


async def test_delivery_to_a_webhook_that_is_gone_or_disabled_fails(
    client: httpx.AsyncClient, settings: Settings, of_workers: Settings
) -> None:
    async with receiving() as receiver, open_services(settings) as owner:
        deleted, disabled = await created(client, receiver.url), await created(client, receiver.url)
        await a_failed_job(owner)
        assert (await client.delete(f"{WEBHOOKS}/{deleted['id']}")).status_code == 204
        await client.patch(f"{WEBHOOKS}/{disabled['id']}", json={"enabled": False})
        async with running_worker(of_workers):
            for job in await deliveries(owner):
                ended = await client.get(f"/api/v1/jobs/{job['id']}", headers={"Prefer": "wait=20"})
                assert ended.json()["error"]["code"] == "webhook-gone"
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"url": "https://elsewhere.example/"}, "webhook-host-refused"),
        ({"url": "https://127.1/"}, "webhook-host-refused"),
        ({"url": "https://u:p@hooks.example.org/"}, "invalid"),
        ({"url": "ftp://hooks.example.org/"}, "invalid"),
        ({"url": URL, "events": []}, "too-short"),
        ({"url": URL, "events": ["webhook.test"]}, "enum"),
        ({"url": URL, "enabled": 1}, "bool-type"),
        ({"url": URL, "secret": "whsec_mine"}, "extra-forbidden"),
    ],
)
async def test_webhook_that_cannot_be_is_refused(client: httpx.AsyncClient, body: dict[str, Any], code: str) -> None:
    answer = await client.post(WEBHOOKS, json=body)

    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, code)
    assert (await client.get(WEBHOOKS)).json()["items"] == []


async def test_project_has_no_more_webhooks_than_it_may(client: httpx.AsyncClient) -> None:
    for _ in range(MAX_WEBHOOKS):
        await created(client)

    answer = await client.post(WEBHOOKS, json={"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "too-many-webhooks")


async def test_requests_at_once_make_no_more_webhooks_than_one_after_the_other(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.post(WEBHOOKS, json={"url": URL}) for _ in range(3 * MAX_WEBHOOKS)))

    assert Counter(answer.status_code for answer in answers) == {201: MAX_WEBHOOKS, 409: 2 * MAX_WEBHOOKS}


async def test_webhook_of_another_project_does_not_exist(services: Services, app: FastAPI) -> None:
    async with two_projects(services, app) as (one, other):
        webhook = await created(one)
        path = f"{WEBHOOKS}/{webhook['id']}"
        answers = [
            await other.patch(path, json={"enabled": False}),
            await other.delete(path),
            await other.post(f"{path}/test"),
        ]
        assert [answer.json()["code"] for answer in answers] == ["webhook-not-found"] * 3
        assert (await other.get(WEBHOOKS)).json()["items"] == []
        assert len((await one.get(WEBHOOKS)).json()["items"]) == 1


async def test_changes_are_in_the_audit_log_without_the_rest_of_the_url(client: httpx.AsyncClient) -> None:
    webhook = await created(client, "https://hooks.example.org/part-that-is-secret")
    path = f"{WEBHOOKS}/{webhook['id']}"
    await client.patch(path, json={"enabled": False})
    await client.post(f"{path}/test")
    await client.delete(path)

    log = await client.get("/api/v1/audit?limit=4")
    actions = [(entry["action"], entry["subject_id"] or "") for entry in log.json()["items"]]
    assert actions == [
        ("webhook.delete", webhook["id"]),
        ("webhook.deliver", ""),
        ("webhook.update", webhook["id"]),
        ("webhook.create", webhook["id"]),
    ]
    assert "part-that-is-secret" not in log.text
    assert "hooks.example.org" in log.text


async def test_refused_request_makes_an_event_and_deliveries_do_not_count(
    services: Services, app: FastAPI, settings: Settings
) -> None:
    limited = await a_project(services, "limited", max_volumes=0, max_queued_jobs=1)
    async with client_of(app), limited.client(app) as client, open_services(settings) as owner:
        await created(client, events=["limit.reached"])
        body = {"name": "a", "size": "1GiB"}
        answers = [await client.post("/api/v1/volumes", json=body) for _ in range(2)]
        assert {answer.json()["code"] for answer in answers} == {"quota-exceeded"}
        assert await event_types(owner) == ["limit.reached"]

        await sql(owner, "UPDATE projects SET max_volumes = NULL WHERE id = :id", id=limited.id)
        assert (await client.post("/api/v1/volumes", json=body)).status_code == 202
