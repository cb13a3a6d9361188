"""The document: every operation named once, every refusal declared, examples that hold what they promise."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from api.main import create_app
from api.problems import INTERNAL, PROBLEM_TYPES, Problem, type_of
from api.schemas import growth, ledger, requests
from api.schemas import responses as schemas
from api.schemas import schedules as schedule_shapes
from domain.errors import CisternError, ConfigurationError, Refused, Unavailable
from tests.unit.fakes import FakeServices


@pytest.fixture
def document() -> dict[str, Any]:
    return create_app(FakeServices().opening()).openapi()


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from references(part)


def family(error: type[CisternError]) -> Iterator[type[CisternError]]:
    yield error
    for child in error.__subclasses__():
        yield from family(child)


def test_operations_have_the_names_that_clients_are_generated_from(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document)]

    assert sorted(names) == sorted(set(names))
    assert {
        "create_volume",
        "list_volumes",
        "get_volume",
        "update_volume",
        "expand_volume",
        "delete_volume",
        "list_jobs",
        "get_job",
        "cancel_job",
        "retry_job",
        "list_backends",
        "expand_volumes",
        "list_job_items",
        "take_snapshot",
        "list_snapshots",
        "list_snapshots_of_volume",
        "get_snapshot",
        "restore_snapshot",
        "delete_snapshot",
        "create_schedule",
        "list_schedules",
        "get_schedule",
        "update_schedule",
        "delete_schedule",
        "list_schedule_runs",
        "run_schedule",
    } <= set(names)


def test_every_operation_has_a_summary_a_description_and_a_tag(document: dict[str, Any]) -> None:
    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        assert len(operation["tags"]) == 1


def test_every_operation_declares_its_refusals_as_problems(document: dict[str, Any]) -> None:
    for operation in operations(document):
        refused = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        expected = {"422", "500", "503"} | ({"400", "413", "415"} if "requestBody" in operation else set())
        assert expected <= refused.keys(), operation["operationId"]
        for status, answer in refused.items():
            (kind,) = answer["content"]
            assert kind == "application/problem+json"
            assert answer["content"][kind]["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in answer["content"][kind]["examples"].items():
                problem = Problem.model_validate(example["value"])
                assert (problem.code, str(problem.status)) == (code, status)


def test_an_operation_that_names_a_thing_declares_that_it_may_be_missing(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        if "{" in path:
            assert all("404" in operation["responses"] for operation in methods.values()), path


def test_every_accepting_operation_declares_where_to_look_next(document: dict[str, Any]) -> None:
    idempotent_transaction = [operation for operation in operations(document) if "202" in operation["responses"]]

    assert len(idempotent_transaction) == 11 + 7, "v1 and v0"
    for operation in idempotent_transaction:
        assert {"Location", "Retry-After", "Preference-Applied"} <= operation["responses"]["202"]["headers"].keys()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_every_shape_that_clients_send_or_read_has_an_example(document: dict[str, Any]) -> None:
    shapes = document["components"]["schemas"]

    for name in (
        "VolumeIn",
        "VolumePatch",
        "GrowthIn",
        "BulkIn",
        "SnapshotIn",
        "VolumeOut",
        "SnapshotOut",
        "JobOut",
        "PlanOut",
        "ItemOut",
        "BackendOut",
        "ScheduleIn",
        "SchedulePatch",
        "ScheduleOut",
        "RunOut",
        "Ready",
    ):
        assert shapes[name]["examples"], name


@pytest.mark.parametrize(
    "shape",
    [
        requests.VolumeIn,
        requests.VolumePatch,
        requests.SnapshotIn,
        growth.GrowthIn,
        growth.BulkExpandIn,
        schemas.VolumeOut,
        schemas.SnapshotOut,
        schemas.JobOut,
        ledger.PlanOut,
        ledger.ItemOut,
        schemas.BackendOut,
        schedule_shapes.ScheduleIn,
        schedule_shapes.SchedulePatch,
        schedule_shapes.ScheduleOut,
        schedule_shapes.RunOut,
    ],
)
def test_every_example_is_of_its_own_shape(shape: Any) -> None:
    adapter = TypeAdapter(shape)
    for example in adapter.json_schema()["examples"]:
        adapter.validate_python(example)


def test_no_member_that_must_not_be_null_is_said_to_be(document: dict[str, Any]) -> None:
    for name in ("GrowthIn", "VolumePatch", "VolumeIn", "Autogrow", "ScheduleIn", "SchedulePatch"):
        for member, schema in document["components"]["schemas"][name]["properties"].items():
            nullable = {"type": "null"} in schema.get("anyOf", [])
            assert nullable == (member in ("autogrow", "backend", "size")), (name, member)
            assert schema.get("default", ...) is not None


async def test_the_document_and_its_page_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "Cistern"
    assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize("error", [error for error in (*family(Refused), *family(Unavailable)) if error is not Refused])
def test_every_refusal_of_the_domain_has_a_status_that_is_not_our_fault(error: type[CisternError]) -> None:
    problem = type_of(error)

    assert (problem.code, problem.status in (404, 409, 422, 503)) == (error.code, True)
    if error.__module__ == "domain.errors":
        assert problem.code in PROBLEM_TYPES


def test_what_is_no_refusal_is_our_fault() -> None:
    assert type_of(ConfigurationError) is INTERNAL


async def test_the_type_of_a_problem_leads_to_its_explanation(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/problems")).json()["items"]

    assert [one["code"] for one in listed] == list(PROBLEM_TYPES)
    for one in listed:
        assert (await client.get(one["type"])).json() == one
