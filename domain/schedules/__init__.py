"""Schedules: jobs that are asked for by the calendar. Housekeeping of every worker looks what is due; none leads.

    due   ┬─ found within its window ──┬─▶ started    run and job, in the transaction that moves `next_run_at` on
          │                            └─▶ skipped    the job of the run before is still going
          └─ found too late, or not the latest ─▶ missed     one row for a whole span of them

`calendar` knows times, `turns` what becomes of those that are due; both are pure. `starter` starts runs, `service` is
what users ask, `actions` what a schedule may ask for.
"""
