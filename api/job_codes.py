"""The codes that jobs and items of bulk jobs have and responses usually have not: cause and remedy of each."""

from collections.abc import Mapping
from typing import Final

from api.explanations import PROBLEM_EXPLANATIONS, Explanation

_NOTHING: Final = "Nothing has to be done."

JOB_EXPLANATIONS: Final[Mapping[str, Explanation]] = {
    code: Explanation(*texts)
    for code, texts in {
        "already-large-enough": ("The volume has at least the size that was requested.", _NOTHING),
        "at-limit": (
            "The volume has reached the limit of the growth.",
            "Raise `up_to` in the request, or in the volume's `autogrow`.",
        ),
        "attachment-stale": (
            "The node still has an earlier file of the volume.",
            "Wait: the node lets go of it. Look at the agent's log if it does not, then retry the job.",
        ),
        "backend-not-served": (
            "No worker serves the backend; the job waits until one does.",
            "Start a worker whose CISTERN_BACKENDS has it, or cancel the job.",
        ),
        "backend-unavailable": (
            "The worker cannot use the backend now; retried, costs no attempt.",
            "Look at the backend in `cistern backends`: a mount may be missing.",
        ),
        "below-threshold": (
            "The volume is used less than `usage_above`, and its inodes less than `inodes_above`.",
            _NOTHING,
        ),
        "cancelled": (
            "The bulk job was cancelled before it came to the volume.",
            "Retry the job: it does only what is missing.",
        ),
        "cooling-down": ("The volume has grown within the last `cooldown_seconds`.", _NOTHING),
        "deliveries-busy": (
            "The worker makes as many deliveries as it may; retried, costs no attempt.",
            "Start more workers if events come late.",
        ),
        "delivery-failed": (
            "The receiver of a webhook did not accept the event; retried.",
            "Look at the receiver: `detail` has its answer. Then retry the job.",
        ),
        "delivery-timeout": (
            "The receiver of a webhook did not answer in time; retried. Its other events wait 30 seconds.",
            "Let the receiver answer first, and work then. Retry the job once it does.",
        ),
        "expanded": ("The volume was expanded.", _NOTHING),
        "fence-refused": (
            "The storage has seen a later operation, which the database has lost.",
            "Look at the data; run `cistern check`; then retry the job if it is still wanted.",
        ),
        "filesystem-failed": (
            "The volume's file system cannot be made or grown.",
            "`detail` has the tool and what it says; correct it, then retry the job.",
        ),
        "items-failed": (
            "A bulk job ended and some of its items failed.",
            "Look at the code of each item, then retry the job: it does only what is missing.",
        ),
        "lanes-lost": (
            "Every lane that worked on the item died or failed.",
            "Look at the lanes of the job and at the workers' logs, then retry the job.",
        ),
        "no-policy": ("The volume has no `autogrow`.", "Give it one: `cistern volumes update`."),
        "node-busy": (
            "A process or a container on the node still uses the volume; retried.",
            "End what uses it (`detail` says where), then retry the job.",
        ),
        "node-failed": (
            "The node could not do what was asked of it; retried.",
            "Look at `detail` and at the agent's log, then retry the job.",
        ),
        "node-not-alive": (
            "The agent of the volume's node is not alive; the job waits until it is.",
            "Start `cistern node` there, cancel the job, or detach the volume by force.",
        ),
        "node-stuck": (
            "The node's kernel or one of its tools did not answer in time; retried.",
            "Look whether the node still reaches the storage, then retry the job.",
        ),
        "node-unable": (
            "The node lacks a tool, a kernel feature or a permission.",
            "`detail` says which; add it, then retry the job.",
        ),
        "not-held": (
            "The job did not hold its volume or snapshot; `cistern check --repair` ended it.",
            "Send the request again if it is still wanted.",
        ),
        "nothing-selected": (
            "No volume matches the selection; the job had nothing to do.",
            "Compare labels and backend with `cistern volumes list`.",
        ),
        "policy-unusable": (
            "This version cannot read the volume's `autogrow`.",
            "Set it again, or finish the upgrade of the workers.",
        ),
        "queue-refuses-writes": (
            "Redis responds but refuses writes; retried.",
            "Free memory or disk of Redis, or point CISTERN_REDIS_URL to the primary.",
        ),
        "queue-unavailable": ("Redis does not respond; retried.", "Start Redis, or correct CISTERN_REDIS_URL."),
        "size-impossible": (
            "The storage reports a size below 1 or above 64 TiB, such as that of an emptied file.",
            "Look at the data of the volume; restore a snapshot.",
        ),
        "size-unsupported": (
            "The backend cannot hold a volume of this size.",
            "Request less, or use another backend.",
        ),
        "snapshot-missing": (
            "The snapshot's data is not on the backend.",
            "Look whether the right file system is mounted; run `cistern check`.",
        ),
        "snapshot-torn": (
            "The volume was being written to, its blocks cannot be shared, and `allow_torn` was not said.",
            "Close or freeze the volume, keep it on XFS or Btrfs, or send `allow_torn`.",
        ),
        "snapshotted": ("A snapshot of the volume was taken.", _NOTHING),
        "storage-busy": (
            "Another process holds the lock of the volume or snapshot; retried, costs no attempt.",
            "Wait; look for a process outside of Cistern that uses the files.",
        ),
        "storage-denied": (
            "The backend may not be written to, or a link, a FIFO or a device is in the place of a file of it.",
            "Correct owner and mode of the backend's folder, or remove what is not a regular file.",
        ),
        "storage-full": ("There is no room left on the backend.", "Add capacity or delete snapshots, then retry."),
        "storage-refused": (
            "The storage refused, and would refuse again.",
            "`detail` has the reason; correct it, then retry the job.",
        ),
        "storage-unavailable": (
            "The storage failed in a way that may pass; retried.",
            "Look at the worker's log if all attempts fail, then retry the job.",
        ),
        "target-refused": (
            "The directory cannot become a mount point: it is not empty, or something else is mounted there.",
            "Name another directory, or empty this one.",
        ),
        "usage-unknown": (
            "It could not be measured how much of the volume is in use, or no node has reported on its file system.",
            "`detail` has the reason. Attach the volume, or grow it without `usage_above`.",
        ),
        "volume-gone": ("The volume was deleted before the bulk job came to it, or never existed.", _NOTHING),
        "volume-in-use": (
            "A process or a loop device has the volume's file open; nothing was changed.",
            "Detach the volume or close the file (`detail` says how to find who has it), then retry the job.",
        ),
        "volume-missing": (
            "The volume's data is not on the backend.",
            "Look whether the right file system is mounted; run `cistern check`.",
        ),
        "webhook-gone": (
            "The webhook was deleted or disabled, or its receiver answered 410.",
            "Enable or create the webhook if its events are wanted.",
        ),
        "worker-lost": (
            "The worker that ran the job died or lost contact.",
            "Look at the worker's log and memory, then retry the job.",
        ),
    }.items()
}
#: The explanations of all codes; a code that responses have too is explained as a problem.
ALL_EXPLANATIONS: Final[Mapping[str, Explanation]] = {**JOB_EXPLANATIONS, **PROBLEM_EXPLANATIONS}
