"""Webhooks from end to end: what fails is delivered once it can be, under one id, signed as the standard says."""

from collections.abc import AsyncIterator
from functools import partial
from uuid import UUID

import pytest
from standardwebhooks.webhooks import WebhookVerificationError

from domain.jobs.attempt import Failed
from domain.jobs.store.jobs import JobRepository
from domain.jobs.webhooks import handler, sender
from domain.services import Services, open_services
from domain.settings import Settings
from domain.storage.context import Grant
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, an_engine, ended, row, run_out, until
from tests.integration.webhook_builders import (
    ERROR,
    a_claimed_job,
    a_failed_job,
    a_webhook,
    deliveries,
)
from tests.support.receiver import Received, Receiver, receiving
from tests.support.worker import running_worker


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that let webhooks go to the receivers of the tests."""
    return settings.model_copy(update={"webhook_hosts": ("127.0.0.1", "localhost")})


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings, adopt=True) as services:
        yield services


async def delivered(services: Services, receiver: Receiver) -> tuple[str, list[Received]]:
    """Run a worker until a failed job has been delivered; return the secret, and what was received."""
    secret = (await a_webhook(services, receiver.url)).secret
    await a_failed_job(services)
    async with running_worker(services.settings):
        (delivery,) = await deliveries(services)
        assert (await ended(services, delivery["id"])).status == "succeeded"
    return secret, receiver.requests


async def test_receiver_that_fails_three_times_gets_the_event_under_one_id(services: Services) -> None:
    failures = ("500 Internal Server Error", "503 Service Unavailable", "404 Not Found")
    async with receiving(*failures) as receiver:
        secret, requests = await delivered(services, receiver)

    (delivery,) = await deliveries(services)
    assert (delivery["attempt"], delivery["result"]["status"]) == (4, 204)
    events = [request.verified(secret) for request in requests]
    assert len(events) == 4
    assert all(event == events[0] for event in events)
    failed = UUID(events[0]["data"]["job"]["id"])
    assert {request.headers["webhook-id"] for request in requests} == {str(failed)}
    assert (events[0]["type"], events[0]["data"]["job"]["error"]) == ("job.failed", ERROR)
    assert (await row(services, failed)).status == "failed"


async def test_each_event_is_told_once_to_each_webhook(services: Services) -> None:
    async with receiving() as receiver:
        await a_webhook(services, receiver.url)
        await a_webhook(services, receiver.url)
        failed = [await a_failed_job(services) for _ in range(3)]
        async with running_worker(services.settings):
            for delivery in await deliveries(services):
                assert (await ended(services, delivery["id"])).status == "succeeded"

    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert sorted(ids) == sorted([*map(str, failed)] * 2)


async def test_library_of_the_standard_refuses_other_secrets_bodies_and_ids(services: Services) -> None:
    async with receiving() as receiver:
        secret, (request,) = await delivered(services, receiver)
    other = (await a_webhook(services)).secret

    assert request.verified(secret)["type"] == "job.failed"
    forged = [
        request._replace(body=request.body.replace(b"failed", b"partial")),
        request._replace(headers={**request.headers, "webhook-id": "another"}),
        request._replace(headers={**request.headers, "webhook-timestamp": "1"}),
    ]
    for one, key in [*((one, secret) for one in forged), (request, other)]:
        with pytest.raises(WebhookVerificationError):
            one.verified(key)


async def test_worker_that_dies_after_the_settlement_leaves_the_delivery_to_others(services: Services) -> None:
    """The worker that has settled does nothing more: it sends no message, and it is not there any more."""
    async with receiving() as receiver:
        await a_webhook(services, receiver.url)
        await a_failed_job(services)
        (delivery,) = await deliveries(services)
        assert (delivery["status"], delivery["dispatched_at"]) == ("queued", None)

        async with running_worker(services.settings):
            assert (await ended(services, delivery["id"])).status == "succeeded"
    assert len(receiver.requests) == 1


async def test_worker_that_dies_during_a_delivery_lets_another_repeat_it_under_the_same_id(services: Services) -> None:
    async with receiving() as receiver:
        await a_webhook(services, receiver.url)
        failed = await a_failed_job(services)
        (delivery,) = await deliveries(services)
        claim = await an_engine(services).claim((await row(services, delivery["id"])).message)
        assert claim is not None
        grant = Grant(claim.job.id, claim.job.fence, claim.deadline)
        await services.handlers[claim.job.kind].perform(claim.job, grant)
        await run_out(services, delivery["id"])
        assert await an_engine(services).maintenance.rescue() == 1

        async with running_worker(services.settings):
            assert (await ended(services, delivery["id"])).status == "succeeded"
    assert [request.headers["webhook-id"] for request in receiver.requests] == [str(failed)] * 2


async def test_settlement_and_delivery_are_recorded_both_or_neither(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_webhook(services)
    engine, job = await a_claimed_job(services)

    async def fail(*_: object) -> None:
        raise RuntimeError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(JobRepository, "add_undispatched", fail)
        with pytest.raises(RuntimeError, match="lost"):
            await engine.settle(job, Failed(ERROR))
    assert ((await row(services, job.id)).status, await deliveries(services)) == ("running", [])

    await engine.settle(job, Failed(ERROR))
    await engine.settle(job, Failed(ERROR))  # as after a lost reply to the COMMIT
    assert ((await row(services, job.id)).status, len(await deliveries(services))) == ("failed", 1)


async def test_receivers_that_do_not_answer_leave_slots_to_other_jobs(services: Services) -> None:
    settings = services.settings.model_copy(update={"max_jobs": 3})
    async with receiving(*[""] * 4) as receiver:
        await a_webhook(services, receiver.url)
        for _ in range(4):
            await a_failed_job(services)
        async with running_worker(settings):
            await until(partial(has_received, receiver, 2))
            created = await services.volumes.request_create(NewVolume("meanwhile", MIB))
            assert (await ended(services, created.id)).status == "succeeded"
            assert len(receiver.requests) == 2
            waiting = [job for job in await deliveries(services) if job["error"] is not None]
            assert {job["error"]["code"] for job in waiting} == {"deliveries-busy"}


async def test_receiver_that_does_not_answer_gets_nothing_else_for_a_while_and_holds_up_no_other(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_TIMEOUT_SECONDS", 0.5)
    async with receiving(*[""] * 100) as silent, receiving() as other:
        await a_webhook(services, silent.url)
        for _ in range(30):
            await a_failed_job(services)
        await a_webhook(services, other.url)
        await a_failed_job(services)
        async with running_worker(services.settings):
            await until(partial(has_received, other, 1))
            await until(partial(has_waited, services))
            assert len(silent.requests) <= 3


async def test_receiver_that_answers_again_gets_what_has_waited(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(handler, "_PAUSE_SECONDS", 0.5)
    async with receiving("", "") as receiver:
        await a_webhook(services, receiver.url)
        for _ in range(5):
            await a_failed_job(services)
        async with running_worker(services.settings):
            for job in await deliveries(services):
                assert (await ended(services, job["id"])).status == "succeeded"


async def has_waited(services: Services) -> bool:
    """Return whether a delivery was not sent, because the receiver did not answer another one."""
    return any("just before" in (job["error"] or {}).get("detail", "") for job in await deliveries(services))


async def has_received(receiver: Receiver, count: int) -> bool:
    return len(receiver.requests) >= count
