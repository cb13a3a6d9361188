"""Guards of who may do what, and of projects and their limits."""

from typing import Final

from tests.mutation.mutation import Mutation

KEYS: Final = "tests/acceptance/test_api_keys.py::"

ACCESS: Final = (
    Mutation(
        "hot-route-ignores-key",
        "a repeated request with the same key would be executed again",
        "api/v1/hot_routes.py",
        'frozenset({b"prefer", b"idempotency-key"})',
        'frozenset({b"prefer"})',
        (f"{KEYS}test_twenty_concurrent_requests_with_one_key_create_one_job",),
    ),
    Mutation(
        "gate-open",
        "every route could be used without a key",
        "api/middleware.py",
        "if refusal := await _refusal(scope):",
        "if refusal := None:",
        ("tests/unit/test_api_access.py::test_request_without_a_valid_key_is_unauthorized",),
    ),
    Mutation(
        "row-missing",
        "a route that the table does not have would be found only by its users",
        "api/access.py",
        '    "/jobs/{}/items": {"GET": _VIEWER},\n',
        "",
        ("tests/unit/test_api_access.py::test_table_has_exactly_the_routes_that_are_served",),
    ),
    Mutation(
        "role-ignored",
        "a viewer could delete volumes",
        "api/access.py",
        "if needed is not None and not principal.role.includes(needed):",
        "if False:",
        ("tests/unit/test_api_access.py::test_route_is_open_to_sufficient_roles_only",),
    ),
    Mutation(
        "project-ignored",
        "whoever knows an id could use what is in any project",
        "domain/db/base.py",
        "return row if row is not None and row.project_id == project_id else None",
        "return row",
        ("tests/integration/test_projects.py::test_what_is_in_another_project_does_not_exist",),
    ),
    Mutation(
        "lists-of-all-projects",
        "a list would have what is in other projects",
        "domain/volumes/repository.py",
        "select(Volume).where(Volume.project_id == project_id).order_by(",
        "select(Volume).order_by(",
        ("tests/integration/test_projects.py::test_lists_have_only_what_is_in_the_project",),
    ),
    Mutation(
        "jobs-of-all-projects",
        "a list would have the jobs of other projects",
        "domain/jobs/store/jobs.py",
        "    yield Job.project_id == project_id\n",
        "    yield Job.project_id.is_not(None)\n",
        ("tests/integration/test_projects.py::test_lists_have_only_what_is_in_the_project",),
    ),
    Mutation(
        "answers-of-all-projects",
        "a job that has ended would be shown to every project",
        "api/v1/job_cache.py",
        "self._entries.get((project_id, job_id))",
        "next((one for (_, id_), one in self._entries.items() if id_ == job_id), None)",
        ("tests/integration/test_projects.py::test_ended_job_in_memory_is_not_shown_to_another_project",),
    ),
    Mutation(
        "bulk-in-all-projects",
        "a bulk job would work on the volumes of every project",
        "domain/bulk/ledger.py",
        "select(*columns).where(Volume.project_id == project_id, *_selected(selection))",
        "select(*columns).where(*_selected(selection))",
        ("tests/integration/test_projects.py::test_bulk_job_finds_no_volume_of_another_project",),
    ),
    Mutation(
        "lane-takes-any-volume",
        "a bulk job would grow a volume of another project whose id it was given",
        "domain/bulk/chunks.py",
        "for volume in found if volume.project_id == lane.project_id}",
        "for volume in found}",
        ("tests/integration/test_projects.py::test_bulk_job_works_on_no_volume_of_another_project",),
    ),
    Mutation(
        "batch-takes-any-volume",
        "an expansion in a batch would find a volume of another project",
        "domain/volumes/service.py",
        "if volume is None or volume.project_id != project_id:",
        "if volume is None:",
        ("tests/integration/test_projects.py::test_what_is_in_another_project_does_not_exist",),
    ),
    Mutation(
        "keys-shared-by-projects",
        "an Idempotency-Key would return the answer to another project",
        "domain/jobs/acceptance.py",
        "return f\"{self.actor.project_id}:{self.actor.name or ''}\"",
        "return 'everybody'",
        ("tests/integration/test_projects.py::test_idempotency_key_of_another_project_is_free",),
    ),
    Mutation(
        "room-not-locked",
        "requests at the same time would exceed a limit",
        "domain/projects/quota.py",
        "ORDER BY id FOR NO KEY UPDATE",
        "ORDER BY id",
        (
            "tests/integration/test_quotas.py::test_of_six_hundred_creations_at_once_as_many_are_accepted_as_there_is_room_for",
        ),
    ),
    Mutation(
        "growth-counts-late",
        "growth that is accepted would count only when it is done",
        "domain/projects/quota.py",
        "greatest(size, growing_to)",
        "size",
        ("tests/integration/test_quotas.py::test_growth_counts_from_its_acceptance_on",),
    ),
    Mutation(
        "owner-not-looked-at",
        "a schedule would go on after its owner has lost the key",
        "domain/schedules/runner.py",
        "if owner.name is not None and not await",
        "if False and not await",
        ("tests/integration/test_projects.py::test_run_of_a_schedule_needs_a_key_of_its_owner",),
    ),
    Mutation(
        "one-turn-for-all",
        "a flood of one project would delay all others",
        "domain/jobs/transport/scripts.py",
        "local id, project = ARGV[i], ARGV[i + 2]",
        "local id, project = ARGV[i], ''",
        (
            "tests/integration/test_fairness.py::test_job_waits_for_no_more_than_the_jobs_at_work",
            "tests/unit/test_job_queue.py::test_projects_take_turns",
        ),
    ),
)
