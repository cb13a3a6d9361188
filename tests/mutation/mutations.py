"""The guards of the promise, each as the mutation that takes it out, and the tests that must notice."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ANY_ORDER: Final = "tests/integration/test_simulation.py::test_in_any_order_nothing_is_lost_and_nothing_happens_twice"
SETTLING: Final = "tests/integration/test_settling.py::"
RESCUE: Final = "tests/integration/test_rescue.py::"
SCHEDULES: Final = "tests/integration/test_schedules_races.py::"
FENCES: Final = "tests/unit/test_storage_contract_fences.py::"
BULK: Final = "tests/integration/test_bulk_accidents.py::"
BULK_SNAPSHOTS: Final = "tests/integration/test_bulk_snapshots_accidents.py::"
KEPT: Final = "tests/integration/test_bulk_snapshots_retention.py::"
INTAKE: Final = "tests/integration/test_request_batching.py::"
KEYS: Final = "tests/acceptance/test_api_keys.py::"
SLEEPER: Final = "tests/acceptance/test_sleeper.py::"


@dataclass(frozen=True)
class Mutation:
    """A change that must not go unnoticed: in ``file`` the one ``text`` becomes ``instead``."""

    name: str
    why: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]

    def applies_to(self, root: Path) -> bool:
        """Whether the text is there, once."""
        return (root / self.file).read_text().count(self.text) == 1

    def make(self, root: Path) -> None:
        path = root / self.file
        path.write_text(path.read_text().replace(self.text, self.instead))


_LIST: Final = (
    Mutation(
        "fence-out",
        "a sleeper that wakes up would undo what others have done since",
        "domain/storage/file/fence.py",
        "if last is not None and fence < last:",
        "if last is not None and fence < last and False:",
        (f"{FENCES}test_a_lower_fence_is_refused_and_changes_nothing", ANY_ORDER),
    ),
    Mutation(
        "ring-out-of-the-claim",
        "an old message would start an attempt that nobody has asked for",
        "domain/jobs/store/leases.py",
        "ON jobs.id = dispatched.job_id AND epoch = dispatched.epoch\n",
        "ON jobs.id = dispatched.job_id\n",
        ("tests/integration/test_claims.py::test_another_ring_than_the_present_one_claims_nothing", ANY_ORDER),
    ),
    Mutation(
        "recorded-before-settling",
        "an attempt that has lost its job would still record its effect",
        "domain/jobs/engine.py",
        """\
            if settled:
                await self._conclude(session, settled)
        await self._follow_up(settled)
""",
        """\
            await self._conclude(session, ended)
        await self._follow_up(settled)
""",
        (f"{SETTLING}test_whoever_has_lost_the_job_changes_nothing", ANY_ORDER),
    ),
    Mutation(
        "recorded-after-settling",
        "a worker killed in between would leave a job that is done and a volume that is stuck",
        "domain/jobs/engine.py",
        """\
            if settled:
                await self._conclude(session, settled)
        await self._follow_up(settled)
""",
        """\
        if settled:
            async with self._database.transaction() as session:
                await self._conclude(session, settled)
        await self._follow_up(settled)
""",
        (f"{SETTLING}test_an_effect_that_cannot_be_recorded_leaves_the_job_as_it_was", ANY_ORDER),
    ),
    Mutation(
        "clock-out",
        "a worker whose lease is over would publish although another may be at it",
        "domain/storage/driver.py",
        "if now >= self.lease.deadline:",
        "if now >= self.lease.deadline and False:",
        (f"{FENCES}test_an_attempt_past_its_lease_publishes_nothing", ANY_ORDER),
    ),
    Mutation(
        "rescue-without-a-ring",
        "the old attempt and the new one could not be told apart",
        "domain/jobs/store/orphans.py",
        "epoch=Job.epoch + 1,",
        "epoch=Job.epoch,",
        (f"{RESCUE}test_an_orphan_goes_back_into_the_queue_with_its_attempt_spent", ANY_ORDER),
    ),
    Mutation(
        "rescue-without-calm",
        "after an outage of PostgreSQL, live workers would lose their jobs to whoever comes back first",
        "domain/jobs/engine.py",
        "self._sure = is_calm(worker.id, lease=lease) if waits_for_calm else true()",
        "self._sure = true()",
        ("tests/integration/test_rescue_is_safe.py::test_a_worker_that_has_just_started_rescues_nobody",),
    ),
    Mutation(
        "lost-rings-not-looked-for",
        "what Redis loses would wait for ever",
        "domain/services.py",
        ", any_rung_before(foreman.ring_patience, self.handlers))",
        ", any_unrung(self.handlers))",
        ("tests/integration/test_maintenance_tasks.py::test_a_job_that_was_rung_long_ago_is_seen",),
    ),
    Mutation(
        "lost-rings-not-missed",
        "housekeeping would look for lost messages and find none",
        "domain/jobs/engine.py",
        "missing = await self._queue.missing(waiting) if waiting else []",
        "missing: list[Ring] = []",
        (
            "tests/integration/test_dispatch.py::test_a_message_that_was_lost_is_rung_again_under_the_same_id",
            ANY_ORDER,
        ),
    ),
    Mutation(
        "worker-out-of-settling",
        "a worker could end what another one is doing",
        "domain/jobs/store/leases.py",
        "WHERE worker_id = :worker_id\n",
        "WHERE :worker_id IS NOT NULL\n",
        (f"{SETTLING}test_whoever_has_lost_the_job_changes_nothing",),
    ),
    Mutation(
        "held-not-required",
        "a job would succeed whose volume was in other hands",
        "domain/volumes/repository.py",
        "    if missing:\n",
        "    if missing and False:\n",
        (f"{SETTLING}test_a_volume_that_is_not_the_jobs_own_is_never_changed",),
    ),
    Mutation(
        "chunk-recorded-by-anybody",
        "a lane that has lost its lease would go on claiming, taking and recording",
        "domain/jobs/store/parents.py",
        "WHERE id = :id AND epoch = :epoch AND worker_id = :worker_id AND status = 'running'",
        "WHERE id = :id",
        (f"{BULK}test_a_lane_that_was_rescued_changes_nothing_any_more",),
    ),
    Mutation(
        "heir-below-the-dead",
        "a new lane would be refused by the fences that dead ones have left",
        "domain/bulk/service.py",
        "        await self._operations[job.kind].renew(session, job.id, items)\n",
        "",
        (
            f"{BULK}test_volumes_that_a_dead_lane_had_grown_are_brought_to_an_end_by_the_next",
            f"{BULK_SNAPSHOTS}test_what_dead_lanes_had_in_their_hands_is_brought_to_an_end_by_the_next",
        ),
    ),
    Mutation(
        "kept-by-somebody-else",
        "a schedule would delete what was made by hand, or by another one",
        "domain/snapshots/repository.py",
        "Snapshot.volume_id.in_(volume_ids), Snapshot.schedule_id == schedule_id, ",
        "Snapshot.volume_id.in_(volume_ids), ",
        (
            f"{KEPT}test_of_five_runs_that_keep_three_the_last_three_are_left_and_what_was_made_by_hand",
            f"{KEPT}test_another_schedules_snapshots_and_those_of_plain_requests_are_let_be",
        ),
    ),
    Mutation(
        "lane-takes-all",
        "one lane would have the whole ledger, and the others nothing to do",
        "domain/bulk/lane_items.py",
        "LIMIT :most FOR UPDATE",
        "FOR UPDATE",
        (f"{BULK}test_a_lane_claims_no_more_than_it_asks_for_whatever_the_plan",),
    ),
    Mutation(
        "lease-never-extended",
        "long work would be taken away from a worker that is alive",
        "domain/jobs/store/leases.py",
        """\
                lease_expires_at=from_now(lease),
                version=""",
        """\
                version=""",
        (f"{RESCUE}test_a_renewed_lease_is_no_orphan",),
    ),
    Mutation(
        "grant-never-extended",
        "long work would stop at the end of its first lease",
        "worker/heartbeat.py",
        "            grant.extend(renewed.deadline)\n",
        "",
        ("tests/unit/test_heartbeat.py::test_a_beat_extends_every_grant_that_is_still_ours",),
    ),
    Mutation(
        "seal-without-fence",
        "an attempt that was given up could still publish on a volume that was let go",
        "domain/storage/file/tree.py",
        """\
            refuse_stale(record.read(), grant.fence)
            record.write(grant.fence)
            yield""",
        """\
            refuse_stale(record.read(), grant.fence)
            yield""",
        (f"{FENCES}test_a_lower_fence_is_refused_and_changes_nothing",),
    ),
    Mutation(
        "own-policy-without-a-limit",
        "a volume whose stored policy has lost its limit would grow every night",
        "domain/bulk/expand/policy.py",
        '{"usage_above", "up_to"} <= own.keys() <= _OWN.keys()',
        "own.keys() <= _OWN.keys()",
        ("tests/unit/test_growth_policy.py::test_a_stored_policy_that_makes_no_sense_grows_nothing",),
    ),
    Mutation(
        "retry-by-the-policy-of-today",
        "a retry would grow by what a volume's policy says now, on top of what was written down",
        "domain/bulk/expand/operation.py",
        "        wanted = _binding(item.to_size, volume.size)\n",
        "        wanted = policy.decide(volume.size, used, volume.autogrow)\n",
        ("tests/integration/test_autogrow.py::test_a_retry_grows_to_the_size_that_was_written_down",),
    ),
    Mutation(
        "given-up-without-seal",
        "a volume would be let go while an earlier attempt may still publish",
        "worker/attempts.py",
        "            return await self._seal(job, grant, outcome)\n",
        "            return outcome\n",
        ("tests/integration/test_ways_out.py::test_an_expansion_that_failed_after_it_was_published_is_adopted",),
    ),
    Mutation(
        "interruption-spends-an-attempt",
        "a few deploys would fail a long job",
        "domain/jobs/engine.py",
        "error=job.error, give_back=1)",
        "error=job.error, give_back=0)",
        (f"{SETTLING}test_an_interrupted_job_gets_its_attempt_back_and_is_rung_at_once", ANY_ORDER),
    ),
    Mutation(
        "key-overlooked",
        "a request that is sent again under its key would be carried out again",
        "api/v1/fast_path.py",
        'frozenset({b"prefer", b"idempotency-key"})',
        'frozenset({b"prefer"})',
        (f"{KEYS}test_one_key_sent_twenty_times_at_once_is_one_job_and_one_answer",),
    ),
    Mutation(
        "keys-taken-in-together",
        "requests under one key that come at the same moment would each be carried out",
        "domain/volumes/service.py",
        "if origin.key is None and await self._intake.create(",
        "if await self._intake.create(",
        (f"{INTAKE}test_a_request_under_a_key_goes_alone",),
    ),
    Mutation(
        "asked-again-in-vain",
        "whoever cannot know whether he was accepted would be told that somebody else was faster, who is himself",
        "domain/volumes/request_batching.py",
        "self._expansions = Grouped(self._expand_all, most=_MOST, is_common=is_outage)",
        "self._expansions = Grouped(self._expand_all, most=_MOST)",
        (f"{INTAKE}test_when_nobody_knows_whether_it_was_committed_nobody_is_told_that_somebody_else_was_first",),
    ),
    Mutation(
        "locked-waited-for",
        "a request that must wait for a lock would have all others wait",
        "domain/volumes/repository.py",
        "FOR NO KEY UPDATE SKIP LOCKED",
        "FOR NO KEY UPDATE",
        (f"{INTAKE}test_whoever_asks_for_a_volume_that_is_locked_holds_up_nobody_else",),
    ),
    Mutation(
        "due-as-it-was-seen",
        "two workers that have seen the same time due would both start it, or one that was changed meanwhile",
        "domain/schedules/repository.py",
        "            Schedule.next_run_at == seen.next_run_at,\n",
        "",
        (f"{SCHEDULES}test_who_has_looked_before_somebody_else_has_started_it_leaves_it_alone",),
    ),
    Mutation(
        "run-beside-its-predecessor",
        "a run that outlasts the time to the next one would go on beside it",
        "domain/schedules/runner.py",
        "if last is not None and not await",
        "if last is not None and False and not await",
        (f"{SCHEDULES}test_many_who_ask_for_a_run_and_many_who_start_it_get_one_job",),
    ),
)

MUTATIONS: Final = {mutation.name: mutation for mutation in _LIST}
