"""Projects: each has volumes, jobs, schedules and keys of its own, and limits of what it may have."""
