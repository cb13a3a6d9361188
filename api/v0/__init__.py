"""Version 0: the synchronous dialect. The same services and jobs; each request is held until its job has ended."""
