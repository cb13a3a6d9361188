"""Consistency check: compares rows, ledgers and storage, reports differences, and repairs what is safe to repair.

Five checks run in the order of `service`: two of `jobs` compare rows with rows, two of `rows_vs_storage` compare rows
with their backends and find data without rows, and `attachments` compares them with jobs, nodes and this host. `repair`
changes the rows of volumes and snapshots.

    code               finding                                               repair
    data-missing       an idle volume or snapshot has no data                `error`, if its fence proves a later delete
    size-differs       row and backend have different sizes                  the row takes the stored size
    fence-behind       a later attempt than the row's has published          version and the job's fence raised above it
    no-row             data without a row                                    a row named `recovered-ID`; never deleted
    leftover           a draft or trash that no job will publish or remove   swept
                       an intermediate snapshot of a clone that has ended    deleted
    no-job             in a state that ends in -ing, but held by no job      the state that a failed job would leave
    not-attached       mounted on a node, but without an attachment there       the record of the mount is removed
    not-held           a live job does not hold its volume or snapshot       failed; the job's kind releases the rest
    no-worker          a job whose lease ended long ago                      requeued
    items-unfinished   an ended bulk job with unfinished items               items failed with `lanes-lost`
    miscounted         a bulk job's counters differ from its ledger          recounted

`no-lanes`, `not-mounted`, `two-nodes`, `no-node`, `no-backend` and `unreadable` are only reported, and what the kernel
of a host has is left to its agent. Rows that differ from their storage are read a second time,
and reported only if they have not changed in between: otherwise a job is at work. Repairs are conditional on the same,
so any number of checks may run beside any number of workers.
"""
