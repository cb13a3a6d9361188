"""Bulk expansion: one job over many volumes, with a ledger that says what became of each.

    bulk.expand   queued ──claim──▶ running ──plan──▶ handed over to its lanes ──last item──▶ succeeded | partial | ...
    bulk.lane     claims a chunk of items, takes their volumes, grows them, records the chunk; then again, and after a
                  second or so rings for itself anew, so that lanes spread over free workers

    item          pending ──claim──▶ claimed ──record──▶ succeeded | skipped | failed
                     ▲                  │
                     └─ volume busy ────┘        (again later, for as long as CISTERN_BUSY_SECONDS)

Lock order everywhere: the lane's row, items, volumes by id, the parent's row last.
"""
