"""Guards of what a node does to its host: one device for a file, a thaw in any case, no write after a loss."""

from typing import Final

from tests.mutation.mutation import Mutation

HOST: Final = "tests/integration/test_node_host.py::"
FREEZE: Final = "tests/integration/test_node_host_freeze.py::"

NODE_HOST: Final = (
    Mutation(
        "two-devices-of-a-file",
        "two nodes of one host could give a file a loop device each, and destroy its file system",
        "worker/node/host/loop_devices.py",
        "            with file_locked(file):",
        "            if True:",
        ("tests/integration/test_node_host_sharing.py::test_many_nodes_that_attach_a_file_at_once_give_it_one_device",),
    ),
    Mutation(
        "device-of-another-program",
        "a node would mount a file that another program has a loop device for",
        "worker/node/host/loop_devices.py",
        "        if any(device.status.mark != mark for device in found):",
        "        if not found and mark != mark:",
        (
            "tests/integration/test_node_host_sharing.py::test_a_file_that_a_loop_device_of_another_program_has_is_refused",
        ),
    ),
    Mutation(
        "earlier-file-passes-for-the-new-one",
        "after a forced detach a holder would be given the bytes of before",
        "worker/node/host/loop_devices.py",
        "        if marked and not found:",
        "        if marked and found is None:",
        (f"{HOST}test_a_new_file_of_a_volume_is_refused_while_the_old_one_is_attached",),
    ),
    Mutation(
        "detached-under-a-container",
        "a volume would count as detached while a container goes on writing to it",
        "worker/node/host/loop_devices.py",
        "            with _opened(device.path, os.O_RDONLY | os.O_EXCL) as handle:",
        "            with _opened(device.path, os.O_RDONLY) as handle:",
        (
            "tests/integration/test_node_host_in_use.py::test_a_volume_that_is_mounted_in_another_mount_namespace_keeps_its_device",
        ),
    ),
    Mutation(
        "lost-volume-is-written",
        "a holder on a lost node would write on",
        "worker/node/host/loop_ioctls.py",
        "offset=_BEYOND_ANY_FILE)",
        "offset=0)",
        (f"{FREEZE}test_nothing_is_written_through_the_device_of_a_lost_volume",),
    ),
    Mutation(
        "unmounted-while-frozen",
        "a file system that is unmounted while it is frozen would stay in the kernel, frozen",
        "worker/node/host/operations.py",
        "                filesystems.thaw(path)  #",
        "                str(path)  #",
        (f"{FREEZE}test_a_frozen_volume_is_detached_and_can_be_attached_again",),
    ),
    Mutation(
        "frozen-for-ever",
        "writers would wait for as long as a stopped agent holds the freeze",
        "worker/node/host/freeze_guard.py",
        "max(0.0, deadline - time.monotonic())",
        "None",
        (f"{FREEZE}test_a_file_system_is_thawed_in_time_while_the_agent_is_stopped",),
    ),
    Mutation(
        "guard-lost",
        "writers would wait for ever after the death of the process that holds the freeze",
        "worker/node/host/freeze.py",
        "            if final is FreezeProgress.GUARD_LOST:",
        "            if final is FreezeProgress.FROZEN:",
        (
            f"{FREEZE}test_a_file_system_is_thawed_when_the_guard_is_killed",
            f"{FREEZE}test_a_file_system_is_thawed_when_the_guard_is_stopped",
        ),
    ),
    Mutation(
        "torn-freeze",
        "a snapshot would count as frozen although somebody had thawed the file system",
        "worker/node/host/freeze_guard.py",
        'else "thawed"',
        'else "released"',
        (f"{FREEZE}test_a_file_system_that_somebody_else_thaws_was_not_frozen_the_whole_time",),
    ),
    Mutation(
        "content-hidden",
        "a mount would hide the files of a directory",
        "worker/node/host/mounts.py",
        "            if next(entries, None) is not None:",
        "            if next(entries, None) is directory:",
        ("tests/integration/test_node_host_in_use.py::test_a_directory_with_content_or_another_mount_is_no_target",),
    ),
)
