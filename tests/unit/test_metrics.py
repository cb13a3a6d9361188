"""Metrics: what is imported and counted without them, their table in the documentation, and the alerts."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from api.cli.stack import Stack
from domain import metrics
from domain.metrics import NOTHING, Recorder, recording
from domain.prometheus.installation import InstallationCollector
from domain.prometheus.process import PrometheusRecorder
from domain.settings import Settings
from tests.support.commands import written
from tests.support.prometheus import MONITORING, NO_PROMETHEUS, PROMTOOL, promtool

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yml").read_text())
SCRAPES: dict[str, Any] = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
METRIC = re.compile(r"cistern_[a-z_]+")


def documented() -> dict[str, tuple[str, ...]]:
    """Return the labels of the metrics in the table of the documentation."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(cistern_\w+)` \|(.*?)\|", page, re.MULTILINE)
    return {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def of_the_code() -> dict[str, tuple[str, ...]]:
    """Return the labels of all metrics but those of the library."""

    async def never() -> Any:
        raise AssertionError

    registry = CollectorRegistry()
    PrometheusRecorder(registry).measure_lanes(lambda: 0)
    with closing(asyncio.new_event_loop()) as loop:
        described = [*InstallationCollector(never, lambda: (), loop).describe()]
    own: list[Any] = [one for one in registry._collector_to_names if hasattr(one, "_labelnames")]
    types = {metric.name: metric.type for metric in (*registry.collect(), *described)}
    labels = {one._name: one._labelnames for one in own} | {one.name: vars(one)["_labelnames"] for one in described}
    return {f"{name}_total" if types[name] == "counter" else name: tuple(labels[name]) for name in labels}


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in ALERTS)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


def test_table_of_metrics_has_the_names_and_labels_of_the_code() -> None:
    assert documented() == of_the_code()
    assert list(documented()) == sorted(documented())


def test_alerts_and_panels_use_metrics_that_exist() -> None:
    used = {name for expression in expressions() for name in METRIC.findall(expression)}
    known = of_the_code().keys()

    assert {re.sub("_(bucket|count|sum)$", "", name) for name in used} - known == set()


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert all(rule["annotations"].keys() == {"summary", "description", "action"} for rule in ALERTS)
    assert {rule["labels"]["severity"] for rule in ALERTS} == {"critical", "warning"}


def test_every_alert_is_in_the_documentation_and_has_a_test() -> None:
    names = [rule["alert"] for rule in ALERTS]
    tests = (MONITORING / "rules_test.yml").read_text()
    page = (ROOT / "docs" / "metrics.md").read_text()

    assert [name for name in names if name not in tests] == []
    assert re.findall(r"^\| `(Cistern\w+)`", page, re.MULTILINE) == names


def test_commands_that_alerts_name_exist() -> None:
    named = {
        found for rule in ALERTS for found in re.findall(r"`cistern ([a-z ]+[a-z])", rule["annotations"]["action"])
    }

    assert named
    assert named - written() == set()


def test_prometheus_scrapes_the_services_of_the_compose_file_on_their_port() -> None:
    (port,) = {
        service["environment"]["CISTERN_METRICS"].partition(":")[2]
        for name, service in COMPOSE["services"].items()
        if name in ("api", "worker")
    }
    found = {
        name: lookup["port"]
        for job in SCRAPES["scrape_configs"]
        for lookup in job["dns_sd_configs"]
        for name in lookup["names"]
    }

    assert found == {"api": int(port), "worker": int(port)}


def test_port_of_metrics_is_not_published_by_the_compose_file() -> None:
    published = " ".join(port for service in COMPOSE["services"].values() for port in service.get("ports", ()))

    assert "9464" not in published


def test_grafana_finds_the_files_that_the_compose_file_mounts() -> None:
    mounted = [volume.split(":")[0] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    (source,) = yaml.safe_load((MONITORING / "grafana" / "datasource.yml").read_text())["datasources"]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}

    assert [path for path in mounted if not (ROOT / path).is_file()] == []
    assert used == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.skipif(PROMTOOL is None, reason=NO_PROMETHEUS)
@pytest.mark.parametrize(
    "arguments", ["check rules rules.yml", "check config prometheus.yml", "test rules rules_test.yml"]
)
def test_promtool_finds_nothing_wrong_with(arguments: str) -> None:
    checked = promtool(*arguments.split())

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_process_without_metrics_does_not_import_their_library() -> None:
    code = "import api.main, worker.main, sys; print([name for name in sys.modules if name.startswith('prometheus')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert printed.stdout == "[]\n"


def test_recorder_is_the_one_of_the_innermost_block() -> None:
    outer, inner = Recorder(), Recorder()
    assert metrics.current() is NOTHING
    with recording(outer):
        with recording(inner):
            assert metrics.current() is inner
        assert metrics.current() is outer

    assert metrics.current() is NOTHING
    assert not NOTHING.is_on


def test_each_process_of_a_stack_has_a_port_of_its_own() -> None:
    stack = Stack(settings=Settings.model_construct(metrics=("127.0.0.1", 9464)))
    without = Stack(settings=Settings.model_construct(metrics=None))

    assert [stack.metrics_variable(number) for number in (0, 2)] == [
        {"CISTERN_METRICS": "127.0.0.1:9464"},
        {"CISTERN_METRICS": "127.0.0.1:9466"},
    ]
    assert without.metrics_variable(0) == {}
