"""Snapshots: a volume's bytes as they were at one moment.

    taking ──▶ ready ──▶ restoring | cloning ──▶ ready
       │         │
       │         └──▶ deleting ──▶ (gone)
       ▼                 ▼
     error ◀─────────────┘          error ──▶ taking (retry) | deleting

A snapshot in a state that ends in -ing belongs to the job in ``job_id``; only clones share it: any number of them may
be made at once, ``job_id`` is one of theirs, and the snapshot is ready again when the last one has ended.
"""
