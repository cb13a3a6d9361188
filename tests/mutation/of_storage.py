"""Guards of the storage."""

from typing import Final

from tests.mutation.mutation import Mutation

SIMULATION: Final = (
    "tests/integration/test_simulation.py::test_jobs_are_never_lost_and_take_effect_once_in_any_order_of_events"
)
FENCES: Final = "tests/unit/test_storage_contract_fences.py::"
IN_USE: Final = "tests/unit/test_storage_in_use.py::TestRefusal::"
CONSISTENCY: Final = "tests/unit/test_storage_consistency.py::"
GROWTH: Final = "tests/unit/test_storage_filesystems.py::TestKilled::"
FILESYSTEMS: Final = "tests/integration/test_filesystems.py::"
USAGE: Final = "tests/integration/test_usage.py::"
CLONES: Final = "tests/integration/test_volume_clones.py::"
WAYS_OUT: Final = "tests/integration/test_snapshots_ways_out.py::"
WORTH: Final = "tests/unit/test_consistency.py::"
IMPOSSIBLE: Final = "tests/integration/test_impossible_storage.py::"

STORAGE: Final = (
    Mutation(
        "fence-not-checked",
        "a worker resumed after a pause would undo what later attempts have done",
        "domain/storage/context.py",
        "if last is not None and fence < last:",
        "if last is not None and fence < last and False:",
        (f"{FENCES}test_lower_fence_is_refused_and_changes_nothing", SIMULATION),
    ),
    Mutation(
        "deadline-not-checked",
        "a worker whose lease has ended would publish while another runs the same job",
        "domain/storage/context.py",
        "if now >= self.state.deadline:",
        "if now >= self.state.deadline and False:",
        (f"{FENCES}test_attempt_past_its_lease_publishes_nothing", SIMULATION),
    ),
    Mutation(
        "seal-keeps-fence",
        "an abandoned attempt could still publish on a volume that was released",
        "domain/storage/file/fence.py",
        "            record.write(grant)\n",
        "            if not seal:\n                record.write(grant)\n",
        (f"{FENCES}test_lower_fence_is_refused_and_changes_nothing",),
    ),
    Mutation(
        "slow-calls-stall",
        "a call that cannot report progress, such as a long reflink, costs every attempt: `worker-lost`",
        "domain/storage/context.py",
        "self._is_overdue(limits) and self.slow_call(limits) is None",
        "self._is_overdue(limits)",
        ("tests/unit/test_blocking_calls.py::test_work_in_a_blocking_call_is_stalled_after_the_limit_of_calls",),
    ),
    Mutation(
        "blocking-calls-never-stall",
        "a job whose storage hangs in a call keeps its lease for ever",
        "domain/storage/context.py",
        "if call.duration <= limits.call_seconds]",
        "]",
        ("tests/unit/test_blocking_calls.py::test_work_in_a_blocking_call_is_stalled_after_the_limit_of_calls",),
    ),
    Mutation(
        "reserved-counts-as-used",
        "an empty volume whose blocks are all allocated would grow every night",
        "domain/storage/file/driver.py",
        "None if self._reserve else bytes_in_use(handle)",
        "os.fstat(handle).st_blocks * 512",
        ("tests/integration/test_usage.py::test_empty_volume_with_reserved_blocks_never_grows",),
    ),
    Mutation(
        "open-files-replaced",
        "a restore would take the volume from whoever has it mounted, whose writes would be lost without an error",
        "domain/storage/file/leases.py",
        "if time.monotonic() >= deadline:",
        "if True:\n            break\n        if time.monotonic() >= deadline:",
        (f"{IN_USE}test_file_that_another_process_has_open_is_neither_replaced_nor_removed",),
    ),
    Mutation(
        "torn-snapshots-taken",
        "a snapshot would mix several moments although the request forbids it",
        "domain/storage/file/consistency.py",
        "        if open_now or os.fstat(self._handle).st_mtime_ns != self._modified:",
        "        if False:",
        (f"{CONSISTENCY}TestCopied::test_writer_that_comes_during_the_copy_is_noticed",),
    ),
    Mutation(
        "growth-not-locked",
        "a growth that outlives its worker would go on beside the next attempt, in the same file system",
        "domain/storage/file/filesystem.py",
        "pass_fds=(handle, *inherited)",
        "pass_fds=(handle,)",
        (f"{GROWTH}test_growth_of_a_killed_worker_ends_before_the_next_attempt_begins",),
    ),
    Mutation(
        "links-followed",
        "whoever owns a volume's directory would have files outside of the backend changed and copied",
        "domain/storage/file/folder.py",
        "_DIRECTORY | os.O_NOFOLLOW",
        "_DIRECTORY",
        ("tests/unit/test_storage_links.py::test_volume_directory_that_is_a_link_is_deleted_and_its_target_kept",),
    ),
    Mutation(
        "root-of-everybody",
        "a backend would be served in which everybody may exchange files",
        "domain/storage/file/root.py",
        "        others = others_that_may_write(os.fstat(root.handle))\n",
        "        others = None\n",
        ("tests/integration/test_backends.py::test_root_that_others_may_write_to_is_not_served_and_says_why",),
    ),
    Mutation(
        "blocks-of-a-file-system-count",
        "an empty file system whose blocks are all allocated would be grown every night",
        "domain/volumes/repository.py",
        "query = query.where(Volume.filesystem.is_(None)) if measurable else query",
        "",
        (f"{USAGE}test_blocks_of_a_file_system_are_not_measured",),
    ),
    Mutation(
        "old-report-believed",
        "a volume would be grown by what a node that is lost said of it long ago",
        "domain/volumes/filesystems/usage.py",
        "case((is_late, null()), else_=one)",
        "one",
        (f"{USAGE}test_volume_with_a_file_system_grows_by_what_its_node_reports",),
    ),
    Mutation(
        "mounted-file-system-grown-offline",
        "a worker would run e2fsck on a file system that a node has mounted",
        "domain/volumes/filesystems/growth.py",
        " if id_ not in attached}",
        "}",
        (f"{FILESYSTEMS}test_file_system_of_an_attached_volume_is_left_to_its_node",),
    ),
    Mutation(
        "retry-grows-as-first-decided",
        "a retry would grow a file system offline that was attached since the first request",
        "domain/operation_handler.py",
        "params = {name: value for name, value in params.items() if name != GROW_FILESYSTEM}",
        "params = dict(params)",
        (f"{FILESYSTEMS}test_retry_decides_anew_whether_the_worker_grows_the_file_system",),
    ),
    Mutation(
        "failed-growth-recorded-as-done",
        "a file system that is smaller than its volume would never be grown",
        "domain/storage/growing.py",
        """        return {"filesystem_error": error.message}\n""",
        """        return {"filesystem_error": error.message, "filesystem_grown_to": size}\n""",
        (f"{FILESYSTEMS}test_failed_growth_is_shown_and_ends_with_the_next_try",),
    ),
    Mutation(
        "restored-file-system-believed-large",
        "the file system of a restored volume would stay as small as that of its snapshot",
        "domain/volumes/repository.py",
        "volume.filesystem_grown_to = None if volume.filesystem is None else 0",
        "",
        (f"{FILESYSTEMS}test_file_system_that_only_nodes_grow_is_not_known_to_have_the_size_of_a_clone",),
    ),
    Mutation(
        "every-size-believed",
        "an emptied data file would fail the bulk snapshot of other volumes",
        "domain/storage/checked.py",
        "_is_count(size, 1, MAX_STORED_SIZE)",
        "isinstance(size, int)",
        (f"{IMPOSSIBLE}test_snapshot_of_a_data_file_of_nothing_fails_at_once",),
    ),
    Mutation(
        "source-not-held",
        "a volume could be deleted, restored or resized while it is being cloned",
        "domain/snapshots/service.py",
        "source = await volumes.acquire(volume_id, project_id, VolumeState.SNAPSHOTTING, job_id)",
        "source = await volumes.get(volume_id, project_id)",
        (f"{CLONES}test_source_is_held_like_the_volume_of_a_snapshot_until_the_clone_is_made",),
    ),
    Mutation(
        "intermediate-left",
        "a clone that fails would leave a snapshot that nobody asked for",
        "domain/operation_handler.py",
        "if self._operation.clean_up is not None:",
        "if self._operation.clean_up is None:",
        (f"{WAYS_OUT}test_failed_or_cancelled_job_leaves_the_expected_states_and_can_be_retried",),
    ),
    Mutation(
        "intermediate-adopted",
        "a repair would make a user's snapshot of what a dead clone has left, or of what a live one needs",
        "domain/check/rows_vs_storage.py",
        "if is_intermediate(snapshot_id):",
        "if is_intermediate(snapshot_id) and False:",
        (
            f"{CLONES}test_check_removes_the_intermediate_snapshot_of_a_dead_clone_and_never_adopts_it",
            f"{CLONES}test_check_beside_a_clone_that_is_being_made_leaves_its_snapshot_alone",
        ),
    ),
    Mutation(
        "clone-of-the-past",
        "a retry of a clone would have the bytes that the volume had when the first job failed",
        "domain/storage_work.py",
        "        await driver.delete(clone, grant)\n",
        "",
        (f"{CLONES}test_retry_of_a_failed_clone_has_the_bytes_and_at_least_the_size_of_the_source_as_it_is_now",),
    ),
    Mutation(
        "attached-counts-as-closed",
        "a copy of a volume that another host writes to would be called consistent",
        "domain/storage/consistency.py",
        "was_open = True if attached else taken.was_open",
        "was_open = taken.was_open",
        (f"{WORTH}test_copy_of_an_attached_volume_is_refused_and_removed_unless_it_may_be_torn",),
    ),
)
