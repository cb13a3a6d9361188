"""Jobs: durable rows that workers claim, perform and settle. This package knows kinds and payloads, never volumes.

    queued ──claim──▶ running ──settle──▶ succeeded | partial | failed | cancelled
      │                  │
      │                  └──retry, rescue, release──▶ queued (epoch + 1)
      └──cancel before the first start──▶ cancelled

The row is the source of truth and the outbox; a message through arq only wakes a worker. It carries the job id and the
epoch, and nothing else.

    table         `model`, `states`; `kinds` is what each job kind must provide
    requests      `service`, `acceptance`, `store.jobs`; `watcher` waits for changes
    workers       `engine` on `store.leases` (claim, renew, settle), with `claimed`, `outcomes` and `retry`
    maintenance   `engine` on `store.dispatch` (due, lost) and `store.orphans` (dead workers), one by one in `isolation`
    bulk jobs     `store.parents`: parents and their lanes
    Redis         `transport.job_queue`, `transport.messages`; `transport.write_errors` if Redis refuses writes
    operation     `stats`; `store.retention` prunes
"""
