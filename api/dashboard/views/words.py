"""Kinds and statuses in words, and how each is coloured; a new one that has no entry is shown as it is."""

from typing import Final

KIND_WORDS: Final = {
    "volume.create": "Create volume",
    "volume.clone": "Clone volume",
    "volume.expand": "Expand volume",
    "volume.delete": "Delete volume",
    "volume.attach": "Attach volume",
    "volume.detach": "Detach volume",
    "volume.isolate": "Take volume from its node",
    "snapshot.take": "Take snapshot",
    "snapshot.restore": "Restore snapshot",
    "snapshot.clone": "Clone snapshot",
    "snapshot.delete": "Delete snapshot",
    "bulk.expand": "Expand many volumes",
    "bulk.snapshot": "Snapshot many volumes",
    "bulk.lane": "Lane of a bulk job",
    "webhook.deliver": "Deliver to webhook",
}

#: What the consistency of a snapshot means.
CONSISTENCY_WORDS: Final = {
    "application": "Nothing was being written",
    "crash": "Of one moment while the volume was in use, as after a power cut",
    "copied": "Copied while the volume was in use: may be of several moments",
}

#: By the status of a job or an item, the state of a volume or a snapshot, or the outcome of a run.
STATUS_TONES: Final = {
    "succeeded": "good",
    "available": "good",
    "ready": "good",
    "started": "good",
    "ok": "good",
    "attached": "good",
    "alive": "good",
    "silent": "bad",
    "failed": "bad",
    "error": "bad",
    "partial": "warn",
    "missed": "warn",
    "skipped": "quiet",
    "cancelled": "quiet",
    "paused": "quiet",
    "revoked": "quiet",
    "expired": "quiet",
    "queued": "wait",
    "pending": "wait",
}
