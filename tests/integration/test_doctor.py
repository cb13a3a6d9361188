"""`cistern doctor` on a real installation: what is well, what is not, and what to do about it."""

import asyncio
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from api.cli.app import main
from domain.doctor import postgresql
from domain.jobs.transport.job_queue import QueueKeys
from domain.services import Services
from domain.settings import Settings
from tests.integration.job_builders import NO_REDIS, an_engine, queued_jobs, sql

Lines = dict[str, tuple[str, str]]
Doctor = Callable[..., tuple[int, Lines]]


@pytest.fixture
def doctor(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    """Run the command; returns its exit status, and state and detail of each check; a later line of one counts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CISTERN_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("CISTERN_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("CISTERN_LEASE_SECONDS", str(settings.lease_seconds))
    monkeypatch.setenv("CISTERN_URL", "http://127.0.0.1:1")

    def run() -> tuple[int, Lines]:
        monkeypatch.setattr(sys, "argv", ["cistern", "doctor", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        logging.disable(logging.NOTSET)
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(bool(one["remedy"]) == (one["state"] != "ok") for one in found)
        return int(ended.value.code or 0), {one["check"]: (one["state"], one["detail"]) for one in found}

    return run


async def a_live_worker(services: Services) -> None:
    engine = an_engine(services)
    engine._worker.slots = 3
    await engine.renew([])
    await services.registry.announce(engine._worker.id, "test")


async def test_installation_that_is_well_has_only_good_lines(services: Services, doctor: Doctor) -> None:
    await a_live_worker(services)
    status, lines = await asyncio.to_thread(doctor)

    assert (status, {check for check, (state, _) in lines.items() if state != "ok"}) == (0, {"api"})
    assert lines["workers"] == ("ok", "1 alive on test: 0 of 3 slots in use")
    assert lines["backend memory"] == ("ok", "memory, served by test")
    servers = {"postgresql", "postgresql writes", "clock", "redis", "redis writes", "redis memory", "redis persistence"}
    assert lines.keys() >= servers | {"settings", "keys"}
    assert lines["queue"] == ("ok", "empty")


async def test_installation_without_a_worker_fails(services: Services, doctor: Doctor) -> None:
    await a_live_worker(services)
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '1 minute'")
    await sql(services, "UPDATE backend_servers SET seen_at = now() - interval '1 minute'")
    await queued_jobs(services, 2)
    await sql(services, "UPDATE jobs SET run_at = now() - interval '2 minutes'")
    status, lines = await asyncio.to_thread(doctor)

    assert (status, lines["workers"][0], lines["backend memory"][0]) == (1, "fail", "fail")
    assert (lines["queue"][0], "2 jobs are due" in lines["queue"][1]) == ("warn", True)


async def test_silent_worker_beside_a_live_one_is_a_warning(services: Services, doctor: Doctor) -> None:
    await an_engine(services).renew([])
    await sql(services, "UPDATE workers SET heartbeat_at = now() - interval '1 minute'")
    await a_live_worker(services)
    status, lines = await asyncio.to_thread(doctor)

    assert (status, lines["workers"]) == (0, ("warn", "1 silent on test"))


async def test_installation_without_a_key_fails(services: Services, doctor: Doctor) -> None:
    await a_live_worker(services)
    await sql(services, "DELETE FROM api_keys")
    status, lines = await asyncio.to_thread(doctor)

    assert (status, lines["keys"][0]) == (1, "fail")


def test_database_that_is_not_migrated_fails(doctor: Doctor, empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", empty_url)
    status, lines = doctor()

    assert (status, lines["postgresql"][0]) == (1, "fail")
    assert "cistern migrate" in lines["postgresql"][1]
    assert lines["redis"][0] == "ok", "the rest is examined all the same"
    assert "workers" not in lines


def test_postgresql_that_does_not_answer_fails(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_DATABASE_URL", "postgresql://127.0.0.1:1/cistern")
    status, lines = doctor()

    assert (status, lines["postgresql"][0], lines["redis"][0]) == (1, "fail", "ok")


async def test_role_that_may_not_write_fails(
    services: Services, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    separator = "&" if "?" in services.settings.database_url else "?"
    option = f"{separator}options={'-c%20default_transaction_read_only%3Don'}"
    monkeypatch.setenv("CISTERN_DATABASE_URL", services.settings.database_url + option)
    status, lines = await asyncio.to_thread(doctor)

    assert (status, lines["postgresql"][0], lines["postgresql writes"][0]) == (1, "ok", "fail"), lines


async def test_clock_that_differs_is_a_warning(
    services: Services, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_live_worker(services)
    monkeypatch.setattr(postgresql, "time", SimpleNamespace(time=lambda: time.time() - 100))
    status, lines = await asyncio.to_thread(doctor)

    assert (status, lines["clock"][0], "behind" in lines["clock"][1]) == (0, "warn", True)


async def test_redis_that_does_not_answer_fails(
    services: Services, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_live_worker(services)
    monkeypatch.setenv("CISTERN_REDIS_URL", NO_REDIS)
    status, lines = await asyncio.to_thread(doctor)

    assert (status, lines["redis"][0], lines["workers"][0]) == (1, "fail", "ok")


async def test_redis_that_refuses_a_write_or_drops_messages_is_reported(services: Services, doctor: Doctor) -> None:
    await a_live_worker(services)
    client = redis.Redis.from_url(services.settings.redis_url)
    queue = QueueKeys.of(await services.database.installation()).queue(None)
    client.set(queue, "no sorted set")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        status, lines = await asyncio.to_thread(doctor)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.delete(queue)
        client.close()

    assert (status, lines["redis writes"][0]) == (1, "fail")
    assert lines["redis memory"] == ("warn", "maxmemory-policy allkeys-lru")


def test_user_of_redis_that_may_not_ask_is_a_warning(
    doctor: Doctor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis.Redis.from_url(settings.redis_url)
    client.execute_command("ACL SETUSER", "asker", "on", ">pw", "~*", "&*", "+@all", "-info", "-lpush")  # type: ignore[no-untyped-call]
    monkeypatch.setenv(
        "CISTERN_REDIS_URL", f"unix://asker:pw@{settings.redis_url.removeprefix('unix://').rpartition('@')[2]}"
    )
    try:
        status, lines = doctor()
    finally:
        client.acl_deluser("asker")
        client.close()

    assert (status, lines["redis writes"][0], lines["redis"][0]) == (1, "fail", "warn"), "LPUSH is forbidden, too"


def test_invalid_setting_is_the_only_line(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CISTERN_MAX_JOBS", "many")
    status, lines = doctor()

    assert (status, lines["settings"][0], set(lines)) == (1, "fail", {"settings", "api"})


async def test_settings_of_a_running_stack_are_found(
    services: Services, doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a_live_worker(services)
    settings = services.settings
    variables = {"DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url}
    folder = tmp_path / ".cistern"
    folder.mkdir(exist_ok=True)
    lines = [f"CISTERN_{name}={shlex.quote(value)}\n" for name, value in variables.items()]
    (folder / "env").write_text("".join(lines))
    for name in variables:
        monkeypatch.delenv(f"CISTERN_{name}")
    status, found = await asyncio.to_thread(doctor)

    assert (status, found["settings"]) == (0, ("ok", "from .cistern/env, of a running `cistern up`"))


def test_key_file_that_others_may_read_fails(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / ".cistern"
    folder.mkdir()
    (folder / "key").write_text("Authorization: Bearer x\n")
    (folder / "key").chmod(0o644)
    status, lines = doctor()

    assert (status, lines["key"][0], "nobody else may read it" in lines["key"][1]) == (1, "fail", True)
