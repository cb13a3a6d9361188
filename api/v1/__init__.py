"""Version 1: every change is a job, and the response is a 202 with the URL of the job."""
