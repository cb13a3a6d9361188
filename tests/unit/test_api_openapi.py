"""The OpenAPI document: unique operation ids, declared errors, valid examples."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from api.main import create_app
from api.problems import INTERNAL, PROBLEM_TYPES, Problem, type_of
from api.schemas import bulk, jobs, schedules, snapshots, volumes
from api.v1 import backends
from domain.errors import CisternError, ConfigurationError, Refused, Unavailable
from tests.unit.fakes import FakeServices


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(FakeServices().factory()).openapi()


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


def with_subclasses(error: type[CisternError]) -> Iterator[type[CisternError]]:
    yield error
    for child in error.__subclasses__():
        yield from with_subclasses(child)


def test_operation_ids_are_unique_and_stable(document: dict[str, Any]) -> None:
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


def test_every_operation_has_a_summary_a_description_and_one_tag(document: dict[str, Any]) -> None:
    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        assert len(operation["tags"]) == 1


def test_every_operation_declares_its_errors_as_problems(document: dict[str, Any]) -> None:
    for operation in operations(document):
        errors = {status: response for status, response in operation["responses"].items() if status >= "400"}
        expected = {"422", "500", "503"} | ({"400", "413", "415"} if "requestBody" in operation else set())
        assert expected <= errors.keys(), operation["operationId"]
        for status, response in errors.items():
            (kind,) = response["content"]
            assert kind == "application/problem+json"
            assert response["content"][kind]["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in response["content"][kind]["examples"].items():
                problem = Problem.model_validate(example["value"])
                assert (problem.code, str(problem.status)) == (code, status)


def test_every_path_with_an_id_declares_404(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        if "{" in path:
            assert all("404" in operation["responses"] for operation in methods.values()), path


def test_every_accepting_operation_declares_its_headers(document: dict[str, Any]) -> None:
    accepting = [operation for operation in operations(document) if "202" in operation["responses"]]

    assert len(accepting) == 14 + 7, "v1 and v0"
    for operation in accepting:
        assert {"Location", "Retry-After", "Preference-Applied"} <= operation["responses"]["202"]["headers"].keys()


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    for reference in set(references(document)):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_every_body_schema_has_examples(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    for name in (
        "VolumeIn",
        "VolumePatch",
        "GrowthIn",
        "BulkExpandIn",
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
        "ReadinessOut",
    ):
        assert schemas[name]["examples"], name


@pytest.mark.parametrize(
    "schema",
    [
        volumes.VolumeIn,
        volumes.VolumePatch,
        snapshots.SnapshotIn,
        volumes.GrowthIn,
        bulk.BulkExpandIn,
        volumes.VolumeOut,
        snapshots.SnapshotOut,
        jobs.JobOut,
        bulk.PlanOut,
        bulk.ItemOut,
        backends.BackendOut,
        schedules.ScheduleIn,
        schedules.SchedulePatch,
        schedules.ScheduleOut,
        schedules.RunOut,
    ],
)
def test_every_example_is_valid(schema: Any) -> None:
    adapter = TypeAdapter(schema)
    for example in adapter.json_schema()["examples"]:
        adapter.validate_python(example)


def test_only_nullable_members_allow_null(document: dict[str, Any]) -> None:
    for name in ("GrowthIn", "VolumePatch", "VolumeIn", "AutogrowIn", "ScheduleIn", "SchedulePatch"):
        for member, schema in document["components"]["schemas"][name]["properties"].items():
            nullable = {"type": "null"} in schema.get("anyOf", [])
            assert nullable == (member in ("autogrow", "backend", "filesystem", "size")), (name, member)
            assert schema.get("default", ...) is not None


async def test_document_and_its_page_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "Cistern"
    assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize(
    "error", [error for error in (*with_subclasses(Refused), *with_subclasses(Unavailable)) if error is not Refused]
)
def test_every_domain_error_has_a_problem_type(error: type[CisternError]) -> None:
    problem = type_of(error)

    assert (problem.code, problem.status in (404, 409, 412, 422, 429, 503)) == (error.code, True)
    if error.__module__ == "domain.errors":
        assert problem.code in PROBLEM_TYPES


def test_configuration_error_is_internal() -> None:
    assert type_of(ConfigurationError) is INTERNAL


def test_examples_of_bulk_routes_change_nothing_or_only_selected_volumes(document: dict[str, Any]) -> None:
    """Swagger UI fills a form with them, and people copy them: none may reach every volume."""
    schemas = document["components"]["schemas"]
    bodies = {
        operation["operationId"]: schemas[next(references(operation["requestBody"])).rpartition("/")[2]]
        for operation in operations(document)
        if "requestBody" in operation
    }
    # Whatever works on many volumes says how many at once.
    found = {name: body for name, body in bodies.items() if "max_concurrent" in body["properties"]}
    examples = [(body["properties"], one) for body in found.values() for one in body["examples"]]
    examples += [({}, one["params"]) for one in bodies["create_schedule"]["examples"]]

    assert set(found) >= {"expand_volumes", "expand_volumes_v0", "take_snapshots"}
    assert all(body["examples"] for body in found.values())  # else the form is filled by the types
    for properties, example in examples:
        assert example.keys() & {"ids", "labels", "backend"}, example
        assert example.get("dry_run", False) is ("dry_run" in properties), example


async def test_problem_type_uri_resolves_to_its_explanation(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/problems")).json()["items"]

    assert {one["code"] for one in listed} >= set(PROBLEM_TYPES)
    for one in listed:
        assert (await client.get(one["type"])).json() == one


def test_idempotency_key_is_documented_where_a_job_or_a_schedule_is_accepted_only(document: dict[str, Any]) -> None:
    for operation in operations(document):
        names = {parameter["name"] for parameter in operation.get("parameters", ())}
        accepts = "202" in operation["responses"] or operation["summary"] == "Create a schedule"
        assert ("Idempotency-Key" in names) == accepts, operation["operationId"]
