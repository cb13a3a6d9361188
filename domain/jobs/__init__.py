"""Jobs: durable rows that workers claim, carry out and settle. Knows a kind and a payload, never a volume.

    queued ──claim──▶ running ──settle──▶ succeeded | partial | failed | cancelled
      │                  │
      │                  └──retry, rescue, interruption──▶ queued (one ring more)
      └──cancel before it was ever started──▶ cancelled

The row is the truth and the outbox; arq is the doorbell. A message carries (job id, ring) and nothing else.

    users      `acceptance`, `service`, `repository`; `watcher` for those who wait
    workers    `foreman`, on `leases` (claim, renew, settle), `orders`, `outcomes` and `retry`
    rounds     `foreman`, on `rings` (what waits) and `orphans` (whose worker died), `apart` from one another
    wholes     `parents`: bulk jobs and their lanes
    Redis      `queue` and its `messages`, and `refusals` for a Redis that takes no writes
    the row    `model` and `states`; `kinds` is what a kind of job must say
    the rest   `signals` tells how it all fares, `retention` forgets what is old
"""
