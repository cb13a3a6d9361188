"""Bulk jobs: one parent job over many volumes, with a ledger that has one item for each of them.

    bulk.expand    queued ──claim──▶ running ──plan──▶ delegated to its lanes ──last item──▶ succeeded | partial | ...
    bulk.snapshot  likewise
    bulk.lane      a child job: claims a chunk of items, acquires their volumes, does the work, records the chunk, and
                   repeats. After about a second it yields and is dispatched again, so that lanes spread over free
                   workers. Claiming and acquiring are one transaction unless the volumes are measured in between

    item           pending ──claim──▶ claimed ──record──▶ succeeded | skipped | failed
                      ▲                  │
                      └─ volume busy ────┘        (retried later, for up to CISTERN_BUSY_SECONDS)

The work itself is a `BulkOperation`: `ExpandOperation` or `SnapshotOperation`.

Lock order everywhere: the lane's row, items, volumes by id, snapshots by id, the parent's row last.
"""
