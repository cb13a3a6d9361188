"""Volumes: the storage that users read and write.

    creating ──▶ available ──▶ expanding | snapshotting | restoring ──▶ available
       │             │
       │             └──▶ deleting ──▶ (row removed)
       ▼                     ▼
     error ◀─────────────────┘        error ──▶ creating (retry) | deleting

One operation at a time: a volume in a state that ends in -ing is held by the job in ``job_id``.
"""
