"""One trace leads from a request to the storage, over processes and attempts; none is made unless it is switched on."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, StatusCode

from domain import tracing
from domain.jobs.model import JobMessage
from domain.otel_tracer import OtelTracer
from domain.services import Services, open_services
from domain.settings import Settings
from tests.integration.conftest import RunningWorker
from tests.integration.job_builders import a_volume, an_engine, counted_statements, ended, sql, until
from tests.integration.schedule_builders import SCHEDULES, Clock, a_schedule, a_schedule_runner, made
from tests.support.bulk import add_volumes

VOLUMES = "/api/v1/volumes"
NEW = {"name": "traced", "size": "1MiB"}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FROM_CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Recorder:
    """The spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = OtelTracer(self._provider.get_tracer("test"))

    def named(self, name: str) -> Sequence[ReadableSpan]:
        """All spans with this name, in the order in which they began."""
        found = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return sorted(found, key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def names(self) -> list[str]:
        return sorted(span.name for span in self._exporter.get_finished_spans())

    async def until_ended(self, name: str, count: int = 1) -> Sequence[ReadableSpan]:
        async def have_ended() -> bool:
            return len(self.named(name)) >= count

        await until(have_ended)
        return self.named(name)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    with tracing.use(recorder.tracer):
        yield recorder


@pytest.fixture
async def services(recorder: Recorder, settings: Settings, tmp_path: Path) -> AsyncIterator[Services]:
    (tmp_path / "faults").touch()
    backends = {"local": f"faulty+null:?fail=@{tmp_path / 'faults'}"}
    async with open_services(settings.model_copy(update={"backends": backends}), adopt=True) as services:
        yield services


def context_of(span: ReadableSpan) -> SpanContext:
    context: SpanContext | None = span.context
    assert context is not None
    return context


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    return child.parent is not None and same_span(child.parent, context_of(parent))


def same_span(one: SpanContext, other: SpanContext) -> bool:
    return (one.trace_id, one.span_id) == (other.trace_id, other.span_id)


def is_linked(span: ReadableSpan, other: ReadableSpan) -> bool:
    return [same_span(link.context, context_of(other)) for link in span.links] == [True]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def accepted(client: httpx.AsyncClient, path: str, **request: Any) -> UUID:
    response = await client.post(path, **request)
    assert response.status_code == 202, response.text
    return UUID(response.json()["id"])


@pytest.mark.parametrize("own", [{}, {"Idempotency-Key": "alone"}], ids=["in a batch", "alone"])
async def test_one_trace_leads_from_the_request_to_the_storage(
    own: dict[str, str],
    client: httpx.AsyncClient,
    services: Services,
    recorder: Recorder,
    running_worker: RunningWorker,
) -> None:
    async with running_worker(services.settings):
        job_id = await accepted(client, VOLUMES, json=NEW, headers=FROM_CLIENT | own)
        await ended(services, job_id)

    request, send, process, storage = map(
        recorder.one, (f"POST {VOLUMES}", "send volume.create", "process volume.create", "create local")
    )
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert is_child(send, request)
    assert is_child(process, send)
    assert is_child(storage, process)
    assert len(recorder.names()) == 4
    assert [span.kind.name for span in (request, send, process, storage)] == [
        *("SERVER", "PRODUCER", "CONSUMER", "INTERNAL")
    ]
    messaging = {"messaging.system": "cistern", "messaging.destination.name": "volume.create"}
    assert attributes(request)["http.response.status_code"] == 202
    assert attributes(send).items() >= (messaging | {"messaging.message.id": str(job_id)}).items()
    assert attributes(process).items() >= (messaging | {"messaging.message.id": str(job_id)}).items()
    assert (attributes(process)["cistern.job.attempt"], attributes(process)["cistern.job.outcome"]) == (1, "succeeded")
    assert attributes(storage) == {
        "cistern.storage.backend": "local",
        "cistern.storage.driver": "faulty+null",
        "cistern.storage.operation": "create",
    }


async def test_each_attempt_has_its_own_span_with_the_code_of_its_error(
    client: httpx.AsyncClient, services: Services, recorder: Recorder, running_worker: RunningWorker, tmp_path: Path
) -> None:
    (tmp_path / "faults").write_text("create:storage-unavailable*1\n")
    async with running_worker(services.settings):
        await ended(services, await accepted(client, VOLUMES, json=NEW))

    (failed, succeeded), send = recorder.named("process volume.create"), recorder.one("send volume.create")
    assert is_child(failed, send)
    assert is_child(succeeded, send)
    assert [attributes(one)["cistern.job.attempt"] for one in (failed, succeeded)] == [1, 2]
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "storage-unavailable")
    assert attributes(failed)["error.type"] == "storage-unavailable"
    assert succeeded.status.status_code is StatusCode.UNSET
    first, second = recorder.named("create local")
    assert is_child(first, failed)
    assert first.status.description == "storage-unavailable"
    assert is_child(second, succeeded)
    assert not first.events, "an exception is recorded with its message"


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}", "ä"]
)
async def test_invalid_traceparent_is_ignored(header: str, client: httpx.AsyncClient, recorder: Recorder) -> None:
    sent = [(b"traceparent", header.encode("latin-1"))]
    response = await client.get("/api/v1/backends", headers=sent)

    assert response.status_code == 200
    assert recorder.one("GET /api/v1/backends").parent is None


async def test_two_traceparents_are_ignored(client: httpx.AsyncClient, recorder: Recorder) -> None:
    await client.get("/healthz", headers=[*FROM_CLIENT.items(), *FROM_CLIENT.items()])

    assert recorder.one("GET /healthz").parent is None


async def test_requests_that_are_accepted_together_stay_in_their_traces(
    client: httpx.AsyncClient, services: Services, recorder: Recorder
) -> None:
    volumes = [await a_volume(services, backend="local") for _ in range(8)]
    traces = {f"{number:032x}": volume.id for number, volume in enumerate(volumes, 1)}
    await asyncio.gather(
        *(
            accepted(
                client,
                f"{VOLUMES}/{volume_id}/expand",
                json={"by": "1MiB"},
                headers={"traceparent": f"00-{trace}-{PARENT}-01"},
            )
            for trace, volume_id in traces.items()
        )
    )

    sent = {
        f"{context_of(span).trace_id:032x}": UUID(attributes(span)["cistern.volume.id"])
        for span in recorder.named("send volume.expand")
    }
    assert sent == traces
    for send in recorder.named("send volume.expand"):
        assert [is_child(send, one) for one in recorder.named(f"POST {VOLUMES}/{{}}/expand")].count(True) == 1


async def test_refused_request_sends_nothing(client: httpx.AsyncClient, services: Services, recorder: Recorder) -> None:
    volume = await a_volume(services, backend="local")
    response = await client.post(f"{VOLUMES}/{volume.id}/expand", json={"to": "4KiB"})

    assert response.status_code == 422
    assert recorder.names() == [f"POST {VOLUMES}/{{}}/expand"]
    request = recorder.one(f"POST {VOLUMES}/{{}}/expand")
    assert (request.status.status_code, attributes(request)["http.response.status_code"]) == (StatusCode.UNSET, 422)


async def test_lanes_have_traces_of_their_own_with_a_link_to_the_bulk_job(
    client: httpx.AsyncClient, services: Services, recorder: Recorder, running_worker: RunningWorker
) -> None:
    await add_volumes(services, 4, backend="local")
    async with running_worker(services.settings):
        body = {"by": "1MiB", "max_concurrent": 2}
        job_id = await accepted(client, f"{VOLUMES}/expand", json=body, headers=FROM_CLIENT)
        await ended(services, job_id)
        await recorder.until_ended("process bulk.lane", 2)

    bulk, planned = recorder.one("send bulk.expand"), recorder.one("process bulk.expand")
    assert is_child(planned, bulk)
    assert f"{context_of(planned).trace_id:032x}" == TRACE
    sends, processes = recorder.named("send bulk.lane"), recorder.named("process bulk.lane")
    assert [one.parent for one in sends] == [None, None]
    assert all(is_linked(one, bulk) for one in (*sends, *processes))
    assert all(any(is_child(one, send) for send in sends) for one in processes)
    assert len({context_of(one).trace_id for one in (bulk, *sends)}) == 3
    assert len(recorder.named("expand local")) == 4
    assert all(any(is_child(one, process) for process in processes) for one in recorder.named("expand local"))


async def test_due_run_has_a_trace_of_its_own_with_a_link_to_the_span_of_its_schedule(
    services: Services, recorder: Recorder, running_worker: RunningWorker
) -> None:
    clock = Clock()
    schedule = await a_schedule(services, clock)
    clock.now = schedule.next_run_at or clock.now
    assert await a_schedule_runner(services, clock).start_due() == 1
    ((job_id,),) = await sql(services, "SELECT id FROM jobs WHERE schedule_id = :id", id=schedule.id)
    async with running_worker(services.settings):
        await ended(services, job_id)

    run, send, process = map(recorder.one, ("run schedule", "send bulk.expand", "process bulk.expand"))
    assert (run.parent, send.parent) == (None, None)
    assert is_linked(send, run)
    assert is_child(process, send)
    assert is_linked(process, run)
    assert attributes(run)["cistern.schedule.name"] == "often"


async def test_run_that_a_client_requests_belongs_to_the_trace_of_the_request(
    client: httpx.AsyncClient, recorder: Recorder
) -> None:
    schedule = await made(client)
    await accepted(client, f"{SCHEDULES}/{schedule['id']}/run", headers=FROM_CLIENT)

    send = recorder.one("send bulk.expand")
    assert is_child(send, recorder.one(f"POST {SCHEDULES}/{{}}/run"))
    assert not send.links


@pytest.mark.parametrize(
    "failing",
    [
        ("POST", VOLUMES, "volume.create", {}),
        ("POST", VOLUMES, "volume.create", {"Idempotency-Key": "failing"}),
        ("POST", f"{VOLUMES}/{{}}/expand", "volume.expand", {}),
        ("POST", f"{VOLUMES}/{{}}/expand", "volume.expand", {"Idempotency-Key": "failing"}),
        ("DELETE", f"{VOLUMES}/{{}}", "volume.delete", {}),
    ],
)
async def test_spans_of_a_failed_request_have_failed(
    failing: tuple[str, str, str, dict[str, str]],
    client: httpx.AsyncClient,
    services: Services,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    method, path, kind, own = failing
    volume = await a_volume(services, backend="local")
    monkeypatch.setattr("domain.jobs.store.jobs.JobRepository.add", fail)
    for accept in ("accept_creations", "accept_expansions"):
        monkeypatch.setattr(f"domain.volumes.batches.{accept}", fail)
    body = NEW if kind == "volume.create" else {"by": "1MiB"} if kind == "volume.expand" else None
    response = await client.request(method, path.format(volume.id), json=body, headers=own)

    assert response.status_code == 500
    request, send = recorder.one(f"{method} {path}"), recorder.one(f"send {kind}")
    assert (request.status.status_code, attributes(request)["error.type"]) == (StatusCode.ERROR, "500")
    assert (send.status.status_code, send.status.description) == (StatusCode.ERROR, "ZeroDivisionError")


async def test_tracing_needs_no_more_statements(
    client: httpx.AsyncClient, services: Services, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def counted(name: str, *, traced: bool) -> int:
        with monkeypatch.context() as patched:
            if not traced:
                patched.setattr(tracing, "_tracer", None)
            with counted_statements() as statements:
                job_id = await accepted(client, VOLUMES, json=NEW | {"name": name})
                claim = await an_engine(services).claim(JobMessage(job_id, 0))
            assert claim is not None
            assert (claim.job.traceparent is not None) is traced
            return len(statements)

    await counted("first", traced=True)
    assert await counted("on", traced=True) == await counted("off", traced=False) == 2


async def test_calls_outside_of_attempts_have_no_spans(services: Services, recorder: Recorder) -> None:
    await services.backends.get("local").measure([])

    assert recorder.names() == []
