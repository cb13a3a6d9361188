"""The statements on the tables of jobs and workers, by who asks. They take a session and never commit."""
