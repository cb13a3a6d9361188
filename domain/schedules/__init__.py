"""Schedules: jobs requested at times given by a cron expression. Maintenance of any worker starts them, without leader.

    due   ┬─ found within its catch-up window ──┬─▶ started    run and job, in the transaction that sets `next_run_at`
          │                                     └─▶ skipped    the job of the previous run is still active
          └─ found too late, or not the latest ───▶ missed     one row for a whole span of times

`cron` computes the times and plans what to do with those that are due: pure functions. `runner` starts runs, `service`
has the operations of users, `actions` is the interface of what a schedule can request.
"""
