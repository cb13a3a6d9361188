"""A node's agent that kills itself at one transition; ``SABOTAGE_TRANSITION`` is a key of the table below."""

import os

from domain.jobs.engine import JobEngine
from domain.jobs.store.leases import LeaseRepository
from domain.jobs.transport.job_queue import JobQueue
from domain.volumes.attachments.freezing import FreezeAnswers
from domain.volumes.attachments.node_volumes import NodeVolumes
from tests.acceptance.sabotage import arm, kill
from tests.acceptance.scale import LONG
from worker.node.host.freeze import Freeze
from worker.node.host.loop_devices import LoopDevices
from worker.node.host.mounts import Mounts
from worker.node.host.operations import HostOperations
from worker.node.main import main

Transitions = dict[str, tuple[type, str, str]]

_JOB: Transitions = {
    "before the claim": (LeaseRepository, "claim", "before"),
    "after the claim": (LeaseRepository, "claim", "if true"),
    "before the commit": (JobEngine, "_record_effects", "after"),
    "after the commit": (JobQueue, "announce", "before"),
}
ATTACH: Transitions = _JOB | {
    "before the loop device": (LoopDevices, "attach", "before"),
    "after the loop device": (LoopDevices, "attach", "after"),
    "before the mount": (Mounts, "mount", "before"),
    "after the mount": (Mounts, "mount", "after"),
    "before the bind mount": (Mounts, "bind", "before"),
    "after the bind mount": (Mounts, "bind", "after"),
}
DETACH: Transitions = _JOB | {
    "before the unmount": (Mounts, "unmount", "before"),
    "after the unmount": (Mounts, "unmount", "after"),
    "before the loop device is released": (LoopDevices, "detach", "before"),
    "after the loop device is released": (LoopDevices, "detach", "after"),
}
GROW: Transitions = {
    "before the growth": (HostOperations, "grow", "before"),
    "between device and file system": (LoopDevices, "update_capacity", "after"),
    "after the growth": (HostOperations, "grow", "after"),
    "after the report": (NodeVolumes, "report", "after"),
}
FREEZE: Transitions = {
    "before the freeze": (Freeze, "start", "before"),
    "after the freeze": (Freeze, "start", "after"),
    "frozen, and the worker knows": (FreezeAnswers, "is_released", "before"),
    "before the thaw": (Freeze, "release", "before"),
    "after the thaw": (Freeze, "release", "after"),
}
#: Those that `make test` runs: the steps where something is made but not recorded yet. `make test-long` runs all.
_SHORT = {
    *("after the claim", "before the commit"),
    *("after the loop device", "after the mount", "after the unmount", "after the loop device is released"),
    *("between device and file system", "after the freeze", "frozen, and the worker knows", "before the thaw"),
}


def chosen(transitions: Transitions) -> list[str]:
    """Return the transitions that are run now."""
    return [name for name in transitions if LONG or name in _SHORT]


if __name__ == "__main__":
    arm(*(ATTACH | DETACH | GROW | FREEZE)[os.environ["SABOTAGE_TRANSITION"]], kill)
    main()
