"""The worker process: receives messages, claims jobs and has the domain perform them. No business rules, no SQL."""
