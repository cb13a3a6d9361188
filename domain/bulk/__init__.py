"""Bulk jobs: one job over many volumes, with a ledger that says what became of each.

    bulk.expand    queued ──claim──▶ running ──plan──▶ handed over to its lanes ──last item──▶ succeeded | partial | ...
    bulk.snapshot  likewise
    bulk.lane      claims a chunk of items, takes their volumes, does its work on them, records the chunk; then again,
                   and after a second or so rings for itself anew, so that lanes spread over free workers.
                   Claiming and taking are one step, unless the volumes must be measured in between

    item           pending ──claim──▶ claimed ──record──▶ succeeded | skipped | failed
                      ▲                  │
                      └─ volume busy ────┘        (again later, for as long as CISTERN_BUSY_SECONDS)

What is done to the volumes is an `Operation`: `domain.bulk.expand.operation`, `domain.bulk.snapshot.operation`.

Lock order everywhere: the lane's row, items, volumes by id, snapshots by id, the parent's row last.
"""
