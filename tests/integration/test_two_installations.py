"""Two installations on one Redis: neither takes, loses or delays a message of the other one."""

from uuid import UUID

import pytest

from domain.db.migrations import migrate
from domain.services import Services, open_services
from domain.settings import Settings
from domain.volumes.service import NewVolume
from tests.integration.job_builders import MIB, ended, row
from tests.support.worker import supervised


@pytest.fixture
def other_settings(settings: Settings, empty_url: str) -> Settings:
    """Settings of another installation with the same Redis."""
    migrate(empty_url)
    return settings.model_copy(update={"database_url": empty_url})


async def jobs_of(services: Services, name: str) -> list[UUID]:
    """Request ten volumes of the same names in both installations, and return the ids of their jobs."""
    return [(await services.volumes.request_create(NewVolume(f"{name}-{n}", MIB))).id for n in range(10)]


async def test_worker_of_one_installation_leaves_the_messages_of_the_other_alone(
    settings: Settings, other_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_services(settings, adopt=True) as ours, open_services(other_settings, adopt=True) as theirs:
        async with supervised(other_settings):
            our_jobs, their_jobs = await jobs_of(ours, "v"), await jobs_of(theirs, "v")
            done = [await ended(theirs, job_id) for job_id in their_jobs]
            messages = [(await row(ours, job_id)).message for job_id in our_jobs]
            assert await ours.queue.missing(messages) == []
        async with supervised(settings):
            done += [await ended(ours, job_id) for job_id in our_jobs]

    assert {(job.status, job.attempt) for job in done} == {("succeeded", 1)}
    assert not [line for line in caplog.messages if "message" in line]
