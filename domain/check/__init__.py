"""Inspection: do rows, ledger and disk agree? Says what does not, and mends what is safe to mend.

Four looks, in the order of `service`: `live_jobs` and `ledgers` (rows among themselves), `shelves` (rows against their
backends, by `judgement`), `strays` (backends against rows). `mending` is the hand that changes volumes and snapshots.

    data-missing       a volume at rest, or a snapshot, has no data    ▶ `error`, if the disk knows that it was deleted
    size-differs       row and disk tell different sizes               ▶ what is on the disk
    fence-behind       the disk has seen later attempts than the row   ▶ version (and the job's fence) above the disk's
    no-row             data that no row knows                          ▶ a row named `recovered-ID`; never deleted
    leftover           a draft or trash that no job can publish        ▶ swept
    stranded           in a state that ends in -ing, but no job has it ▶ where the job's way out leads
    not-held        a live job that does not have what it is about  ▶ failed, by its own way out
    no-worker          the lease ended long ago                        ▶ back into the queue
    items-unfinished   an ended bulk job with items that wait          ▶ failed, `lanes-lost`
    miscounted         a bulk job's counters are not its ledger's      ▶ counted afresh

`no-lanes`, `no-backend` and `unreadable` are only told. What is in motion is looked at twice: it counts if its row has
not moved meanwhile. Mending is conditional on that too, so any number of these may run beside any number of workers.
"""
