"""Traces cost nothing while they are off, and are sent to a collector while they are on."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from domain import tracing
from domain.batching import Batcher
from domain.db.base import DEFAULT_PROJECT
from domain.db.sql import as_rows
from domain.errors import ConfigurationError
from domain.jobs.model import new_job
from domain.settings import load_settings
from domain.storage.backends import Backends
from domain.storage.checked import CheckedDriver
from domain.telemetry import CLOSING, exporting

#: In the flags of a traceparent.
SAMPLED = 1
SERVERS = {"CISTERN_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "CISTERN_REDIS_URL": "redis://127.0.0.1:1"}


def output_of(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CISTERN_", "OTEL_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment | variables, timeout=60)


@pytest.mark.parametrize(
    ("imported", "package"),
    [
        ("worker.main", "opentelemetry"),
        ("api.cli.app", "opentelemetry"),
        # FastAPI imports the API of OpenTelemetry itself.
        ("api.main", "opentelemetry.sdk"),
        ("api.main", "opentelemetry.exporter"),
        ("api.main", "domain.otel_tracer"),
    ],
)
def test_process_without_traces_imports_nothing_of_opentelemetry(imported: str, package: str) -> None:
    code = f"""
import asyncio, sys
import {imported}
from domain.services import open_services
from domain.settings import load_settings
async def start():
    async with open_services(load_settings()):
        pass
try:
    asyncio.run(start())
except Exception as error:
    print(type(error).__name__)
print([name for name in sys.modules if name == "{package}" or name.startswith("{package}.")])
"""
    assert output_of(code, **SERVERS).stdout == "DatabaseUnavailable\n[]\n"


@pytest.mark.parametrize("process", ["worker.main", "api.cli.__main__"])
def test_process_without_the_extra_ends_with_one_line_that_says_what_to_install(process: str) -> None:
    code = f"""
import sys
sys.modules["opentelemetry.sdk.trace"] = None
sys.argv = ["cistern", "serve", "--port", "0"]
from {process} import main
main()
"""
    ended = output_of(code, CISTERN_TRACES="true", **SERVERS)
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if "CISTERN_TRACES" in line]

    assert ended.returncode != 0
    assert "Traceback" not in ended.stdout + ended.stderr
    (line,) = lines
    assert "CISTERN_TRACES: opentelemetry.sdk.trace is missing; `pip install 'cistern[otel]'` installs it" in line


def a_job() -> Any:
    return new_job("volume.create", {}, max_attempts=1, project_id=DEFAULT_PROJECT)


def test_job_has_no_trace_context_while_traces_are_off() -> None:
    assert "traceparent" not in a_job().loaded_columns()
    assert "traceparent" not in as_rows([a_job()])


def test_driver_is_not_wrapped_while_traces_are_off() -> None:
    assert type(Backends.open({"memory": "memory:"}, 1).get("memory")) is CheckedDriver


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("false", None),
        ("0", None),
        ("true", "true"),
        ("1", "true"),
        ("http://collector:4318", "http://collector:4318"),
        ("https://collector/v1/traces", "https://collector/v1/traces"),
    ],
)
def test_setting_is_a_switch_or_a_url(text: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_TRACES", text)

    assert load_settings().traces == value


@pytest.mark.parametrize("text", ["perhaps", "collector:4318", "http://", "http://collector:port", "grpc://collector"])
def test_any_other_setting_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_TRACES", text)

    with pytest.raises(ConfigurationError, match=r"^CISTERN_TRACES: "):
        load_settings()


Requests = list[tuple[str, bytes]]


@contextmanager
def a_collector(*, hangs: bool = False) -> Iterator[tuple[str, Requests]]:
    """A server that keeps what is sent to it: path and body of each request. One that hangs answers at its end."""
    requests: Requests = []
    may_answer = threading.Event()
    if not hangs:
        may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            may_answer.wait()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            may_answer.set()
            server.shutdown()
            thread.join()


async def test_spans_are_sent_to_the_collector_before_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with a_collector() as (url, requests):
        async with exporting(f"{url}/", "cistern-worker"):
            job = a_job()
        ((path, body),) = requests

    assert path == "/v1/traces"
    assert b"send volume.create" in body
    assert b"cistern-worker" in body
    version, trace, span, flags = job.traceparent.split("-")
    assert (version, len(trace), len(span), int(flags, 16) & SAMPLED) == ("00", 32, 16, SAMPLED)
    assert tracing.tracer() is None


async def test_process_does_not_wait_long_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domain.telemetry._CLOSE_SECONDS", 0.1)
    with a_collector(hangs=True) as (url, _):
        async with asyncio.timeout(5):
            async with exporting(url, "cistern-worker"):
                a_job()
        last = [thread for thread in threading.enumerate() if thread.name == CLOSING]
        assert last, "it was not sending its spans any more"
    for thread in last:
        thread.join()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
async def test_standard_variables_name_the_collector_and_the_service(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_collector() as (url, requests):
        monkeypatch.setenv(variable, url + ("/v1/traces" if "TRACES" in variable else ""))
        monkeypatch.setenv("OTEL_SERVICE_NAME", "another-name")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        async with exporting("true", "cistern-worker"):
            a_job()
        ((path, body),) = requests

    assert path == "/v1/traces"
    assert b"another-name" in body
    assert b"cistern-worker" not in body


async def test_sampling_is_that_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with a_collector() as (url, requests):
        async with exporting(url, "cistern-worker"):
            job = a_job()

    assert requests == []
    assert not int(job.traceparent[-2:], 16) & SAMPLED, "the worker must know that the trace is not sampled"


async def test_sdk_that_is_switched_off_stores_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with exporting("http://127.0.0.1:1", "cistern-worker"):
        assert a_job().traceparent is None


async def test_batch_is_not_part_of_the_trace_of_its_first_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def send(items: Any) -> Any:
        seen.append(a_job().traceparent)
        return items

    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with exporting("http://127.0.0.1:1", "cistern-api"):
        tracer = tracing.tracer()
        assert tracer is not None
        parent: Mapping[str, str] = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
        with tracer.serve("POST /", parent, {}):
            inside = a_job().traceparent
            await Batcher(send, max_batch=1)(1)

    assert inside.split("-")[1] == "a" * 32
    assert seen[0].split("-")[1] != "a" * 32
