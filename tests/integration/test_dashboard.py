"""The pages of the dashboard over real services: what they read, how far they count, and whom they show what."""

import re
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from uuid_utils.compat import uuid7

from api.access import PAGES
from domain.access.model import Role
from domain.access.service import NewKey
from domain.db.base import DEFAULT_PROJECT
from domain.db.pagination import PageRequest
from domain.jobs import service as service_module
from domain.jobs import stats as stats_module
from domain.jobs.model import Job
from domain.jobs.overview import OverviewService
from domain.jobs.states import JobStatus
from domain.jobs.store import overview as overview_module
from domain.jobs.store.jobs import JobFilter
from domain.jobs.store.overview import Count
from domain.services import Services
from domain.volumes.model import Volume
from domain.volumes.repository import VolumeFilter
from tests.integration.job_builders import a_queued_expand, a_volume, sql
from tests.integration.project_builders import a_project
from tests.support.http import client_of

SECRET = "the-name-of-another-project"


@pytest.fixture
async def stranger(app: FastAPI, services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client with an owner's key of another project."""
    other = await a_project(services, "other")
    async with client_of(app, headers={"Authorization": f"Bearer {other.key}"}) as client:
        yield client


async def add_jobs(services: Services, *statuses: JobStatus, kind: str = "volume.expand", age: str = "0 s") -> None:
    """Insert jobs that ended, or are queued and due, one after the other."""
    for status in statuses:
        await sql(
            services,
            "INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, finished_at, run_at)"
            " VALUES (:id, :kind, CAST(:status AS text), 2, '{}', 1, 8, 0,"
            " CASE WHEN CAST(:status AS text) <> 'queued' THEN now() END,"
            " now() - CAST(CAST(:age AS text) AS interval))",
            id=uuid7(),
            kind=kind,
            status=status.value,
            age=age,
        )


async def test_nothing_of_another_project_is_on_any_page(services: Services, stranger: httpx.AsyncClient) -> None:
    volume = await a_volume(services, name=SECRET)
    await a_queued_expand(services)
    await sql(services, "UPDATE jobs SET created_by = :name, volume_id = NULL", name=SECRET)
    await add_jobs(services, JobStatus.FAILED)
    ((job_id,), *_) = await sql(services, "SELECT id FROM jobs")
    for path in PAGES:
        if path.startswith("/sign-") or path in ("/project", "/schedules/preview"):
            continue
        for one in (volume.id, job_id):
            response = await stranger.get(path.replace("{}", str(one)))
            assert response.status_code == (404 if "{}" in path else 200), path
            assert SECRET not in response.text, path
            assert "{}" in path or str(job_id) not in response.text, path
    assert "All is well" not in (await stranger.get("/")).text, "no worker is alive, whatever the project"


async def test_buttons_are_those_of_the_role(app: FastAPI, services: Services) -> None:
    volume = await a_volume(services)
    await add_jobs(services, JobStatus.FAILED)
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    offered: dict[Role, set[str]] = {}
    for role in Role:
        key = (await services.keys.create(NewKey(role.value, role))).text
        async with client_of(app, headers={"Authorization": f"Bearer {key}"}) as client:
            for path in ("/", "/volumes", f"/volumes/{volume.id}", f"/jobs/{job_id}", "/schedules", "/settings"):
                text = (await client.get(path)).text
                marks = ("data-post=", "data-remove=", "data-patch=", "data-api=", "Audit log", "data-opens=")
                offered.setdefault(role, set()).update(f"{path.split('/')[1]} {one}" for one in marks if one in text)

    assert offered[Role.VIEWER] == set()
    assert "volumes data-api=" in offered[Role.OPERATOR]
    assert not {one for one in offered[Role.OPERATOR] if "remove" in one or "settings" in one}
    assert {"volumes data-remove=", "settings data-post="} <= offered[Role.OWNER]
    assert offered[Role.SYSTEM] - offered[Role.OWNER] == {"settings Audit log"}


async def test_overview_counts_what_was_accepted_and_shows_what_failed(services: Services) -> None:
    ended = (JobStatus.SUCCEEDED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.FAILED, JobStatus.CANCELLED)
    await add_jobs(services, *ended, JobStatus.PARTIAL)
    await add_jobs(services, JobStatus.QUEUED, age="90 s")
    await sql(
        services,
        "INSERT INTO jobs (id, kind, status, version, params, attempt, max_attempts, epoch, finished_at, retry_of)"
        " SELECT :id, kind, 'succeeded', 2, '{}', 1, 8, 0, now(), id FROM jobs WHERE status = 'failed' LIMIT 1",
        id=uuid7(),
    )
    overview = await services.overview.latest(DEFAULT_PROJECT)

    assert {status.value: count.number for status, count in overview.today.items()} == {
        "succeeded": 3,
        "partial": 1,
        "failed": 2,
        "cancelled": 1,
    }
    assert sorted(job.status for job in overview.failed) == ["failed", "partial"]
    assert (overview.waiting, overview.workers) == (Count(1, more=False), [])
    assert overview.oldest_seconds is not None
    assert 90 <= overview.oldest_seconds < 150


async def test_overview_counts_no_further_than_is_quick(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (overview_module, stats_module):
        monkeypatch.setattr(module, "MAX_COUNTED", 3)
    await add_jobs(services, *[JobStatus.FAILED] * 4, *[JobStatus.SUCCEEDED] * 2, *[JobStatus.QUEUED] * 4)
    overview = await services.overview.latest(DEFAULT_PROJECT)

    assert overview.today[JobStatus.FAILED] == Count(3, more=True)
    assert overview.today[JobStatus.SUCCEEDED] == Count(0, more=True), "the newest are queued"
    assert overview.waiting == Count(3, more=True)


async def test_overview_is_read_once_for_all_who_look(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    service, reads = OverviewService(services.database, lease=15), []
    read = service._read

    async def count_reads(project_id: object) -> object:
        reads.append(project_id)
        return await read(DEFAULT_PROJECT)

    monkeypatch.setattr(service, "_read", count_reads)
    for _ in range(5):
        await service.latest(DEFAULT_PROJECT)

    assert len(reads) == 1


async def test_search_looks_at_a_limited_number_of_jobs_and_goes_on(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "SEARCHED", 4)
    await add_jobs(services, JobStatus.FAILED, kind="volume.delete")
    await add_jobs(services, *[JobStatus.FAILED] * 9)
    found: list[Job] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        request = PageRequest("jobs", limit=2, cursor=cursor)
        page = await services.jobs.list_jobs(JobFilter(kind="volume.delete"), request, project_id=DEFAULT_PROJECT)
        found, cursor, pages = [*found, *page.items], page.next_cursor, pages + 1

    assert ([job.kind for job in found], pages) == (["volume.delete"], 3)
    nobody = JobFilter(created_by="nobody")
    page = await services.jobs.list_jobs(nobody, PageRequest("jobs"), project_id=DEFAULT_PROJECT)
    assert (page.items, page.next_cursor is None) == ([], False)
    failed = JobFilter(JobStatus.FAILED)
    assert len((await services.jobs.list_jobs(failed, PageRequest("jobs"), project_id=DEFAULT_PROJECT)).items) == 10


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (VolumeFilter(name_part="SEARCH"), ["search-2", "search-1"]),
        (VolumeFilter(name_part="%"), []),
        (VolumeFilter(backend="null"), ["mail-1"]),
        (VolumeFilter(usage_above=50), ["search-2"]),
        (VolumeFilter(usage_above=99), []),
    ],
)
async def test_volumes_are_found_by_name_backend_and_usage(
    services: Services, filters: VolumeFilter, names: list[str]
) -> None:
    for name, backend, used in (("search-1", "memory", 50), ("search-2", "memory", 51), ("mail-1", "null", None)):
        volume = await a_volume(services, name=name, backend=backend, size=4096 * 100)
        await sql(services, "UPDATE volumes SET used = 4096 * :used WHERE id = :id", used=used, id=volume.id)
    page = await services.volumes.list_volumes(filters, PageRequest("volumes"), project_id=DEFAULT_PROJECT)

    assert [volume.name for volume in page.items] == names


@pytest.mark.parametrize(
    "path",
    [
        "/jobs?status=&kind=&volume_id=&created_by=&schedule_id=",
        "/volumes?name=&state=&backend=&label=&usage_above=",
        "/settings?name=&action=",
    ],
)
async def test_empty_field_of_a_form_is_no_filter(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200
    assert (await client.get(f"{path}&unknown=1")).status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        *("/jobs?kind=%00", "/jobs?created_by=a%00b", "/settings?name=%00", "/settings?action=%00"),
        *("/volumes?name=%00", "/volumes?backend=%00", "/volumes?label=team:%00"),
    ],
)
async def test_filter_that_no_text_of_postgresql_can_equal_is_invalid(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 422


async def test_lists_have_a_next_page_with_the_same_filters(client: httpx.AsyncClient, services: Services) -> None:
    for number in range(3):
        await a_volume(services, name=f"search-{number}")
    await a_volume(services, name="mail")
    first = (await client.get("/volumes?name=search&limit=2")).text
    link = first.partition('<nav class="more"')[2].partition('href="')[2].partition('"')[0].replace("&amp;", "&")
    second = (await client.get(link)).text

    assert ["search-0" in first, "search-2" in first] == [False, True]
    assert ["search-0" in second, "mail" in second] == [True, False]


async def test_codes_of_jobs_and_items_link_to_their_explanation(client: httpx.AsyncClient, services: Services) -> None:
    await add_jobs(services, JobStatus.FAILED, kind="bulk.expand")
    await add_jobs(services, JobStatus.FAILED, kind="of.another")
    ((job_id,), (other_id,)) = await sql(services, "SELECT id FROM jobs ORDER BY kind")
    error = "UPDATE jobs SET error = jsonb_build_object('code', CAST(:code AS text), 'detail', 'why') WHERE id = :id"
    await sql(services, error, code="items-failed", id=job_id)
    await sql(services, error, code="of-another-package", id=other_id)
    await sql(
        services,
        "INSERT INTO job_items (job_id, volume_id, status, code) VALUES (:id, :id, 'skipped', 'volume-gone')",
        id=job_id,
    )

    page, jobs = (await client.get(f"/jobs/{job_id}")).text, (await client.get("/jobs")).text

    for code, text in (("items-failed", page), ("volume-gone", page), ("items-failed", jobs)):
        assert f'<a href="/problems/{code}">{code}</a>' in text
        assert (await client.get(f"/problems/{code}")).status_code == 200
    assert "of-another-package" in jobs
    assert "/problems/of-another-package" not in jobs


async def test_page_of_a_bulk_job_is_followed_until_its_lanes_have_ended(
    client: httpx.AsyncClient, services: Services
) -> None:
    await add_jobs(services, JobStatus.PARTIAL, kind="bulk.expand")
    ((job_id,),) = await sql(services, "SELECT id FROM jobs")
    await add_jobs(services, JobStatus.QUEUED, kind="bulk.lane")
    await sql(services, "UPDATE jobs SET parent_id = :id WHERE kind = 'bulk.lane'", id=job_id)
    before = (await client.get(f"/jobs/{job_id}")).text
    await sql(services, "UPDATE jobs SET status = 'succeeded', finished_at = now() WHERE kind = 'bulk.lane'")
    after = (await client.get(f"/jobs/{job_id}")).text

    assert f'data-follow="{job_id}"' in before
    assert 'data-follow=""' in after


async def test_page_of_a_volume_shows_its_three_sizes_and_why_its_file_system_is_smaller(
    client: httpx.AsyncClient, services: Services
) -> None:
    volume = await a_volume(services, name="data", size=10 * 2**20)
    await sql(
        services,
        "UPDATE volumes SET filesystem = 'ext4', filesystem_size = 9 * 1048576, filesystem_used = 2 * 1048576,"
        " inodes = 1000, inodes_used = 11, filesystem_error = 'e2fsck ended with <4>',"
        ' autogrow = \'{"usage_above": 80, "percent": 20, "up_to": 20971520, "inodes_above": 90,'
        ' "cooldown_seconds": 60}\'',
    )
    page = (await client.get(f"/volumes/{volume.id}")).text

    assert "ext4: 2 MiB of 9 MiB used, 11 of 1,000 inodes" in page
    assert "no node has reported yet what is used" in page
    assert "e2fsck ended with &lt;4&gt;" in page
    assert "above 80 % used or 90 % of the inodes, by 20 %, up to 20 MiB, not again within 60 s" in page


async def attach(services: Services, volume: Volume, holder: str = "db") -> str:
    """Insert an attachment on a node that has been silent for two hours, without a job; return its id."""
    columns = "id, project_id, volume_id, node, holder, mode, path, state, generation"
    values = ":id, :project, :volume, 'web-1', :holder, 'rw', '/srv/data', 'attached', 2"
    names = {"id": uuid7(), "project": volume.project_id, "volume": volume.id, "holder": holder}
    [(found,)] = await sql(services, f"INSERT INTO attachments ({columns}) VALUES ({values}) RETURNING id", **names)
    mount = (
        "INSERT INTO mounts (volume_id, node, generation, device, path) VALUES (:id, 'web-1', 2, '/dev/loop7', '/m/1')"
    )
    await sql(services, f"{mount} ON CONFLICT DO NOTHING", id=volume.id)
    return str(found)


async def test_page_of_a_volume_shows_who_has_it_where_and_since_when(
    client: httpx.AsyncClient, services: Services
) -> None:
    volume = await a_volume(services, name="data")
    assert 'id="volume-attachments" data-live class="card" hidden>' in (await client.get(f"/volumes/{volume.id}")).text
    await attach(services, volume, "db<1>")
    page = (await client.get(f"/volumes/{volume.id}")).text

    assert 'id="volume-attachments" data-live class="card">' in page
    assert "db&lt;1&gt;" in page
    for text in ("web-1", "/dev/loop7", "/m/1", "/srv/data", "read and write", "attached", "<time datetime="):
        assert text in page, text


async def test_volume_in_use_can_be_neither_deleted_nor_restored_on_its_page_which_says_why(
    client: httpx.AsyncClient, services: Services
) -> None:
    volume = await a_volume(services, name="data")
    await sql(
        services,
        "INSERT INTO snapshots (id, project_id, volume_id, name, state, size, version)"
        " VALUES (gen_random_uuid(), :project, :id, 'before', 'ready', 1, 1)",
        project=volume.project_id,
        id=volume.id,
    )

    async def buttons() -> list[str]:
        page = (await client.get(f"/volumes/{volume.id}")).text
        path = re.escape(f'data-remove="/api/v1/volumes/{volume.id}" ')
        return [*re.findall(f'<button[^>]*(?:{path}|/restore")[^>]*>', page)]

    restore = (await buttons())[1]
    assert " disabled" not in restore
    await attach(services, volume)
    await attach(services, volume, "other")
    why = 'disabled title="It is attached on web-1 for other and others: detach it first"'
    assert [why in button for button in await buttons()] == [True, True]


async def test_volume_is_taken_from_its_node_by_who_may_do_that(app: FastAPI, services: Services) -> None:
    volume = await a_volume(services)
    attachment_id = await attach(services, volume)
    path = f'data-remove="/api/v1/volumes/{volume.id}/attachments/{attachment_id}'
    offered = {}
    for role in Role:
        key = (await services.keys.create(NewKey(role.value, role))).text
        async with client_of(app, headers={"Authorization": f"Bearer {key}"}) as client:
            page = (await client.get(f"/volumes/{volume.id}")).text
            offered[role] = (f'{path}"' in page, f'{path}?force=true"' in page)
            address = f"/api/v1/volumes/{volume.id}/attachments/{uuid7()}?force=true"
            assert (await client.delete(address)).status_code == (404 if role.includes(Role.OWNER) else 403)

    both = (True, True)
    assert offered == {
        Role.VIEWER: (False, False),
        Role.OPERATOR: (True, False),
        Role.OWNER: both,
        Role.SYSTEM: both,
    }


async def test_overview_lists_nodes_and_says_that_one_with_volumes_is_not_alive(
    client: httpx.AsyncClient, services: Services
) -> None:
    assert 'id="nodes" data-live class="card" hidden>' in (await client.get("/")).text
    await sql(services, "INSERT INTO workers (id, host, pid, node) VALUES (gen_random_uuid(), 'h', 1, 'web-2')")
    alive = (await client.get("/")).text
    assert ("web-2" in alive, "is not alive, and volumes" in alive) == (True, False)
    await attach(services, await a_volume(services))
    page = (await client.get("/")).text

    assert "The agent of the node web-1 is not alive, and volumes are attached there." in page
    assert "1 attachment, not seen for an hour" in page
    assert [word in page for word in ("</svg>alive</span>", "</svg>silent</span>")] == [True, True]


@pytest.mark.parametrize("state", ["attaching", "detaching"])
async def test_volumes_that_are_being_attached_or_detached_are_found_by_their_state(
    client: httpx.AsyncClient, services: Services, state: str
) -> None:
    changing = await a_volume(services, name="changing")
    await a_volume(services, name="other")
    change = "UPDATE volumes SET state = :state, job_id = gen_random_uuid() WHERE id = :id"
    await sql(services, change, state=state, id=changing.id)
    page = (await client.get(f"/volumes?state={state}")).text

    assert (f"/volumes/{changing.id}" in page, ">other<" in page) == (True, False)
    assert f"</svg>{state}</span>" in page
