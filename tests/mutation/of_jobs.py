"""Guards of jobs, bulk jobs, schedules and requests."""

from typing import Final

from tests.mutation.mutation import Mutation

SIMULATION: Final = (
    "tests/integration/test_simulation.py::test_jobs_are_never_lost_and_take_effect_once_in_any_order_of_events"
)
SETTLING: Final = "tests/integration/test_settling.py::"
RESCUE: Final = "tests/integration/test_rescue.py::"
SCHEDULES: Final = "tests/integration/test_schedules_races.py::"
AHEAD: Final = "tests/integration/test_fence_behind.py::"
BULK: Final = "tests/integration/test_bulk_accidents.py::"
BULK_SNAPSHOTS: Final = "tests/integration/test_bulk_snapshots_accidents.py::"
RETENTION: Final = "tests/integration/test_bulk_snapshots_retention.py::"
IMPOSSIBLE: Final = "tests/integration/test_impossible_storage.py::"
BATCHING: Final = "tests/integration/test_request_batching.py::"

JOBS: Final = (
    Mutation(
        "claim-ignores-epoch",
        "an old message would start an attempt of a later epoch",
        "domain/jobs/store/statements.py",
        "ON jobs.id = dispatched.job_id AND jobs.epoch = dispatched.epoch\n",
        "ON jobs.id = dispatched.job_id\n",
        ("tests/integration/test_claims.py::test_message_of_another_epoch_claims_nothing", SIMULATION),
    ),
    Mutation(
        "effect-recorded-before-settling",
        "an attempt that has lost its job would still record its effect",
        "domain/jobs/engine.py",
        """\
            if settled:
                await self._record_effects(session, settled)
""",
        """\
            await self._record_effects(session, ended)
""",
        (f"{SETTLING}test_worker_that_lost_the_job_changes_nothing", SIMULATION),
    ),
    Mutation(
        "effect-recorded-after-settling",
        "a worker killed in between would leave a succeeded job whose volume is never released",
        "domain/jobs/engine.py",
        """\
            if settled:
                await self._record_effects(session, settled)
""",
        """\
        if settled:
            async with self._database.transaction() as session:
                await self._record_effects(session, settled)
""",
        (f"{SETTLING}test_job_is_unchanged_if_its_effect_cannot_be_recorded", SIMULATION),
    ),
    Mutation(
        "rescue-keeps-epoch",
        "the old attempt and the new one would have the same fence",
        "domain/jobs/store/orphans.py",
        "epoch=Job.epoch + 1,",
        "epoch=Job.epoch,",
        (f"{RESCUE}test_orphan_is_requeued_with_its_attempt_spent", SIMULATION),
    ),
    Mutation(
        "rescue-without-grace-period",
        "after an outage of PostgreSQL, the first worker to reconnect would take the jobs of live workers",
        "domain/jobs/engine.py",
        "rescue_is_safe=rescue_is_safe(worker.id, lease=lease) if respect_grace_period else true(),",
        "rescue_is_safe=true(),",
        ("tests/integration/test_rescue_is_safe.py::test_newly_started_worker_does_not_rescue",),
    ),
    Mutation(
        "redispatch-never-due",
        "jobs whose message Redis lost would never run",
        "domain/services.py",
        "old = any_dispatched_before(jobs.redispatch_after, kinds)",
        "old = any_undispatched(kinds)",
        ("tests/integration/test_maintenance_tasks.py::test_redispatch_is_due_for_a_job_dispatched_long_ago",),
    ),
    Mutation(
        "lost-messages-not-detected",
        "maintenance would check for lost messages, but never find one",
        "domain/jobs/maintenance.py",
        "missing = await self._queue.missing(waiting) if waiting else []",
        "missing: list[JobMessage] = []",
        (
            "tests/integration/test_dispatch.py::test_lost_message_is_sent_again_with_the_same_id",
            SIMULATION,
        ),
    ),
    Mutation(
        "claimed-counts-as-lost",
        "a message would be sent again, and counted as lost, because a worker acknowledged it meanwhile",
        "domain/jobs/maintenance.py",
        "return await DispatchRepository(session, self.kinds).still_queued(missing)",
        "return missing",
        ("tests/integration/test_dispatch.py::test_message_that_a_worker_acknowledges_meanwhile_is_not_lost",),
    ),
    Mutation(
        "reservation-never-ends",
        "a message that was fetched by a worker that died at once would never be fetched again",
        "worker/fetching.py",
        "    restore(queue, reserved)\n    repeat",
        "    repeat",
        ("tests/unit/test_consumer.py::test_messages_of_a_worker_that_died_are_fetched_again_first",),
    ),
    Mutation(
        "settlement-ignores-worker",
        "a worker could settle a job that another worker holds",
        "domain/jobs/store/statements.py",
        "AND worker_id = :worker_id\n",
        "AND :worker_id IS NOT NULL\n",
        (f"{SETTLING}test_worker_that_lost_the_job_changes_nothing",),
    ),
    Mutation(
        "effect-without-holding-volume",
        "a job would succeed although another job holds its volume",
        "domain/operation_handler.py",
        "if missing := set(expected) - set(changed):",
        "if (missing := set(expected) - set(changed)) and False:",
        (f"{SETTLING}test_volume_held_by_another_job_is_never_changed",),
    ),
    Mutation(
        "lane-lease-not-checked",
        "a lane that has lost its lease would go on claiming items and recording their results",
        "domain/jobs/store/statements.py",
        "WHERE id = :id AND epoch = :epoch AND worker_id = :worker_id AND status = 'running'",
        "WHERE id = :id",
        (f"{BULK}test_rescued_lane_changes_nothing",),
    ),
    Mutation(
        "new-lane-keeps-fences",
        "the fences of dead lanes would refuse a new lane",
        "domain/bulk/service.py",
        "                await self._operations[job.kind].raise_fences(session, job.id, items)\n",
        "",
        (
            f"{BULK}test_volumes_expanded_by_a_dead_lane_are_completed_by_the_next",
            f"{BULK_SNAPSHOTS}test_items_of_a_dead_lane_are_completed_by_the_next",
        ),
    ),
    Mutation(
        "retention-ignores-schedule",
        "a schedule would delete snapshots that users or other schedules have taken",
        "domain/snapshots/repository.py",
        "Snapshot.volume_id.in_(volume_ids), Snapshot.schedule_id == schedule_id, ",
        "Snapshot.volume_id.in_(volume_ids), ",
        (
            f"{RETENTION}test_last_three_of_five_runs_and_manual_snapshots_are_kept",
            f"{RETENTION}test_snapshots_of_other_origins_are_not_deleted",
        ),
    ),
    Mutation(
        "lane-claims-everything",
        "one lane would claim the whole ledger and leave nothing for the others",
        "domain/bulk/ledger.py",
        "LIMIT :limit FOR UPDATE",
        "FOR UPDATE",
        (f"{BULK}test_lane_never_claims_more_than_its_limit",),
    ),
    Mutation(
        "lease-not-extended",
        "a live worker would lose a job that runs longer than one lease",
        "domain/jobs/store/leases.py",
        """\
                lease_expires_at=from_now(lease),
                version=""",
        """\
                version=""",
        (f"{RESCUE}test_renewed_lease_is_not_rescued",),
    ),
    Mutation(
        "grant-not-extended",
        "work would stop at the end of its first lease",
        "worker/heartbeat.py",
        "            grant.extend(renewed.deadline)\n",
        "",
        ("tests/unit/test_heartbeat.py::test_beat_extends_every_grant_that_is_still_held",),
    ),
    Mutation(
        "forgotten-restore-repeated",
        "after a failover that lost history, a restore would discard what was written since it was done",
        "domain/operation_handler.py",
        "if self._operation.overwrites and stored.version > job.fence.version:",
        "if False:",
        (f"{AHEAD}test_restore_that_later_operations_have_followed_is_not_repeated",),
    ),
    Mutation(
        "forgotten-epoch-reused",
        "after a failover that lost history, an attempt of that history could settle a later one with its epoch",
        "domain/jobs/store/jobs.py",
        '"epoch": func.greatest(Job.epoch, fence.epoch + 1)',
        '"epoch": Job.epoch',
        (f"{AHEAD}test_job_behind_the_storages_fence_goes_on_by_itself_and_spends_no_attempt",),
    ),
    Mutation(
        "stored-policy-without-limit",
        "a volume whose stored policy has no limit would grow every night",
        "domain/bulk/expand.py",
        '{"usage_above", "up_to"} <= autogrow.keys() <= _AUTOGROW_TYPES.keys()',
        "autogrow.keys() <= _AUTOGROW_TYPES.keys()",
        ("tests/unit/test_growth_policy.py::test_invalid_stored_policy_grows_nothing",),
    ),
    Mutation(
        "retry-uses-current-policy",
        "a retry would apply the current policy on top of the size that was already stored",
        "domain/bulk/expansion.py",
        "        decision = item.to_size if item.to_size > volume.size else ItemCode.ALREADY_LARGE_ENOUGH\n",
        "        decision = policy.new_size(volume.size, used, volume.autogrow)\n",
        ("tests/integration/test_autogrow.py::test_retry_grows_to_the_stored_size",),
    ),
    Mutation(
        "failed-without-seal",
        "a volume would be released while an earlier attempt may still publish",
        "worker/performer.py",
        "            return await self._seal(job, grant, outcome)\n",
        "            return outcome\n",
        ("tests/integration/test_ways_out.py::test_size_of_an_expansion_that_failed_after_publishing_is_stored",),
    ),
    Mutation(
        "release-spends-attempt",
        "a long job would fail after a few deployments",
        "domain/jobs/engine.py",
        "error=job.error, give_back=1)",
        "error=job.error, give_back=0)",
        (f"{SETTLING}test_released_job_gets_its_attempt_back_and_is_dispatched_at_once", SIMULATION),
    ),
    Mutation(
        "keyed-requests-batched",
        "concurrent requests with one key would all be executed",
        "domain/volumes/service.py",
        "if origin.idempotency is None and await self._batches.create(",
        "if await self._batches.create(",
        (f"{BATCHING}test_request_with_a_key_is_not_batched",),
    ),
    Mutation(
        "unavailable-batch-sent-singly",
        "if the result of a commit is unknown, the request would be sent again and refused as a conflict with itself",
        "domain/volumes/batches.py",
        "Batcher(self._expand_batch, max_batch=MAX_BATCH, fails_all=failed_transiently)",
        "Batcher(self._expand_batch, max_batch=MAX_BATCH)",
        (f"{BATCHING}test_unknown_commit_result_is_not_reported_as_a_conflict",),
    ),
    Mutation(
        "batch-waits-for-locks",
        "a request for a locked volume would delay all others in its batch",
        "domain/volumes/statements.py",
        "FOR NO KEY UPDATE OF volumes SKIP LOCKED",
        "FOR NO KEY UPDATE OF volumes",
        (f"{BATCHING}test_request_for_a_locked_volume_delays_no_other",),
    ),
    Mutation(
        "changed-volume-acquired",
        "two jobs would hold one volume if a second process accepts a request between the read and the write",
        "domain/volumes/statements.py",
        "ON volumes.id = expected.id AND volumes.version = expected.version",
        "ON volumes.id = expected.id",
        (
            f"{BATCHING}TestExpansions::test_volume_that_changes_after_it_was_read_is_expanded_from_its_new_size",
            f"{BATCHING}TestExpansions::test_requests_for_a_volume_that_another_process_acquires_are_refused_with_its_job",
        ),
    ),
    Mutation(
        "due-run-started-twice",
        "two workers that read the same due time would both start a run, or one of a schedule changed since",
        "domain/schedules/repository.py",
        "            Schedule.next_run_at == due.next_run_at,\n",
        "",
        (f"{SCHEDULES}test_run_started_since_the_read_is_not_started_again",),
    ),
    Mutation(
        "overlapping-runs",
        "a run that takes longer than the interval would overlap with the next one",
        "domain/schedules/runner.py",
        "if last is not None and not await",
        "if last is not None and False and not await",
        (f"{SCHEDULES}test_concurrent_requests_and_starts_create_one_job",),
    ),
    Mutation(
        "heartbeat-waits-for-others",
        "leases would expire while other transactions hold every connection of the process",
        "domain/jobs/engine.py",
        "self._database.transaction(reserved=True)",
        "self._database.transaction()",
        ("tests/integration/test_connections.py::test_heartbeat_waits_for_no_connection_that_others_hold",),
    ),
    Mutation(
        "missing-connection-spends-attempt",
        "bulk jobs would fail while all processes together want more connections than PostgreSQL has",
        "worker/performer.py",
        "            case DatabaseUnavailable() if was_not_executed(error):\n",
        "            case DatabaseUnavailable() if False:\n",
        ("tests/unit/test_performer.py::test_missing_connection_costs_no_attempt_even_at_the_last_one",),
    ),
    Mutation(
        "heartbeat-without-fallback",
        "leases would run out once a heartbeat has lost its connection and PostgreSQL has none left",
        "domain/db/database.py",
        "            except NotConnected:\n                connection = await stack",
        "            except ZeroDivisionError:\n                connection = await stack",
        ("tests/integration/test_connections.py::test_heartbeat_without_its_connection_uses_another",),
    ),
    Mutation(
        "consumer-stays-at-the-old-primary",
        "a worker whose slots were all busy during a failover of Redis would receive no message any more",
        "worker/consumer.py",
        "await self._consumer.pool.connection_pool.disconnect(inuse_connections=False)",
        "pass",
        ("tests/integration/test_redis_failover.py::test_worker_and_api_follow_an_address",),
    ),
    Mutation(
        "chunk-recorded-or-lost",
        "one result that PostgreSQL refuses would cost the whole chunk all its attempts",
        "domain/bulk/chunks.py",
        "                await self._record_alone(result)\n",
        "                await self._record([result])\n",
        (f"{IMPOSSIBLE}test_result_that_cannot_be_recorded_fails_alone",),
    ),
)
