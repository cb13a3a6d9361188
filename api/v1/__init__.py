"""Version 1: every change is a job, answered with 202 and the way to it."""
