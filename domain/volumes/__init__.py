"""Volumes: what users keep their bytes on.

    creating ──▶ available ──▶ expanding | snapshotting | restoring ──▶ available
       │             │
       │             └──▶ deleting ──▶ (gone)
       ▼                     ▼
     error ◀─────────────────┘        error ──▶ creating (retry) | deleting

One operation at a time: a volume in a state that ends in -ing belongs to the job in ``job_id``.
"""
