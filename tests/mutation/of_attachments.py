"""Guards of volumes in use: who has one keeps it, on one node, and what is known of it comes from there."""

from typing import Final

from tests.mutation.mutation import Mutation

JOBS: Final = "tests/integration/test_attachment_jobs.py::"
KEEPER: Final = "tests/unit/test_node_keeper.py::"
CHECK: Final = "tests/integration/test_check_attachments.py::"
_KEPT: Final = f"{JOBS}test_attached_volume_is_neither_restored_nor_deleted_nor_attached_elsewhere"

ATTACHMENTS: Final = (
    Mutation(
        "restored-while-attached",
        "the bytes below a mounted file system would be replaced",
        "domain/volumes/repository.py",
        "        if state in (VolumeState.RESTORING, VolumeState.DELETING):\n",
        "        if state is VolumeState.DELETING:\n",
        (_KEPT,),
    ),
    Mutation(
        "deleted-while-attached",
        "the bytes below a mounted file system would be removed",
        "domain/volumes/repository.py",
        "        if state in (VolumeState.RESTORING, VolumeState.DELETING):\n",
        "        if state is VolumeState.RESTORING:\n",
        (_KEPT,),
    ),
    Mutation(
        "attached-on-two-nodes",
        "two kernels would write to one file system, and destroy it",
        "domain/volumes/attachments/service.py",
        "        if other.node != new.node:\n",
        "        if other.node != new.node and other.holder == new.holder:\n",
        (_KEPT,),
    ),
    Mutation(
        "isolated-before-it-is-settled",
        "a volume would count as free before its bytes are out of the lost node's reach",
        "domain/attachment_handlers.py",
        "        async with self._freezer.frozen(volume_of(job)):\n",
        "        async with self._database.transaction() as session:\n"
        "            await AttachmentRepository(session).remove_of([volume_of(job)])\n"
        "        async with self._freezer.frozen(volume_of(job)):\n",
        (f"{JOBS}test_volume_taken_by_force_keeps_its_attachments_until_the_job_is_settled",),
    ),
    Mutation(
        "isolated-but-still-attached",
        "a volume that was taken from a lost node could never be attached again",
        "domain/attachment_handlers.py",
        "        await AttachmentRepository(session).remove_of([volume_of(job) for job, _ in succeeded])",
        "        await AttachmentRepository(session).remove_of([])",
        (f"{JOBS}test_volume_taken_by_force_keeps_its_attachments_until_the_job_is_settled",),
    ),
    Mutation(
        "failed-attach-leaves-a-holder",
        "a volume would be attached to somebody who never got it, and could not be deleted",
        "domain/attachment_handlers.py",
        '        new = [job for job, _ in failed if job.params["is_new"]]',
        "        new: list[ClaimedJob] = []",
        (f"{JOBS}test_failed_attachment_of_a_new_holder_leaves_nothing",),
    ),
    Mutation(
        "failed-repetition-takes-the-volume",
        "a holder would lose a volume that it uses because a repeated request failed",
        "domain/attachment_handlers.py",
        '        new = [job for job, _ in failed if job.params["is_new"]]',
        "        new = [job for job, _ in failed]",
        (f"{JOBS}test_failed_repetition_of_an_attachment_leaves_the_holder_what_it_has",),
    ),
    Mutation(
        "failed-detach-ends-nowhere",
        "a holder of a volume that could not be detached would be detaching for ever",
        "domain/attachment_handlers.py",
        "            await AttachmentRepository(session).keep(volume_of(job))",
        "            pass",
        (f"{JOBS}test_volume_that_could_not_be_taken_by_force_stays_with_its_holders",),
    ),
    Mutation(
        "keeper-beside-a-job",
        "the keeper would mount again what a job is unmounting",
        "worker/node/keeper.py",
        "            if not volume.is_changing and volume.holders:",
        "            if volume.holders:",
        (f"{KEEPER}test_volume_that_a_job_attaches_or_detaches_is_left_alone",),
    ),
    Mutation(
        "thawed-counts-as-frozen",
        "a snapshot of a file system that was thawed before its end would be called consistent",
        "worker/node/freezing.py",
        "        is_held = was_held and await",
        "        is_held = await",
        (f"{KEEPER}test_freeze_whose_time_was_over_while_the_worker_released_it_is_lost",),
    ),
    Mutation(
        "freeze-beside-another",
        "the snapshot of a worker that takes over from a lost one would not be consistent",
        "worker/node/freezing.py",
        "            await asyncio.wait([before])",
        "            pass",
        (f"{KEEPER}test_freeze_for_the_worker_that_takes_over_follows_that_for_the_lost_one",),
    ),
    Mutation(
        "report-of-another-node",
        "growth would go by what a node that has lost the volume says of it",
        "domain/volumes/attachments/node_volumes.py",
        "            mounted = select(Mount).where(Mount.volume_id == volume_id, Mount.node == self._node)",
        "            mounted = select(Mount).where(Mount.volume_id == volume_id)",
        (f"{JOBS}test_report_counts_only_from_the_node_that_has_the_volume",),
    ),
    Mutation(
        "report-after-detaching",
        "a late report would overwrite what is known of a volume that is not mounted any more",
        "domain/volumes/attachments/node_volumes.py",
        "            if await session.scalar(mounted.with_for_update()) is not None:",
        "            if await session.scalar(mounted.with_for_update()) is not session:",
        (f"{JOBS}test_report_counts_only_from_the_node_that_has_the_volume",),
    ),
    Mutation(
        "nodes-count-as-workers",
        "an installation without a worker would seem to have one",
        "domain/jobs/store/workers.py",
        "select(func.count()).where(self._is_alive, _DOES_STORAGE_WORK)",
        "select(func.count()).where(self._is_alive)",
        (
            f"{JOBS}test_agent_of_a_node_is_no_worker",
            f"{JOBS}test_agent_of_a_node_fetches_only_the_jobs_of_its_node",
        ),
    ),
    Mutation(
        "node-fetches-shared-jobs",
        "a node would take messages that only a worker can use",
        "worker/node/main.py",
        "slots=settings.max_jobs, shares_queue=False)",
        "slots=settings.max_jobs)",
        (f"{JOBS}test_agent_of_a_node_fetches_only_the_jobs_of_its_node",),
    ),
    Mutation(
        "check-repairs-beside-a-job",
        "a repair would take a volume from a holder that a job has just begun to serve",
        "domain/check/attachments.py",
        "    return not await session.scalar(select(_is_changed(volume_id)))",
        "    return True",
        (f"{CHECK}test_repair_leaves_what_a_job_has_begun_with_meanwhile",),
    ),
    Mutation(
        "job-of-a-lost-node-says-nothing",
        "a job would wait for an agent that is away, and nobody would know why",
        "domain/jobs/store/dispatch.py",
        "    return for_backend | _waiting_for_a_node(lease).exists()",
        "    return for_backend",
        ("tests/integration/test_attachments.py::test_a_job_of_a_node_whose_agent_is_not_alive_waits_and_says_so",),
    ),
)
