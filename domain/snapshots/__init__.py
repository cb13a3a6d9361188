"""Snapshots: a volume's data at one point in time.

    taking ──▶ ready ──▶ restoring | cloning ──▶ ready
       │         │
       │         └──▶ deleting ──▶ (row removed)
       ▼                 ▼
     error ◀─────────────┘          error ──▶ taking (retry) | deleting

A snapshot in a state that ends in -ing is held by the job in ``job_id``. Only clones share a snapshot: any number may
run at once, ``job_id`` names one of their jobs, and the snapshot is ready again when the last one has ended.
"""
