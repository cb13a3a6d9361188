"""Version 0: the synchronous dialect over the same services; each response is delayed until the job has ended."""
