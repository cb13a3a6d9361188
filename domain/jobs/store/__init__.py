"""Repositories of the tables of jobs and workers, one module per caller. They take a session and never commit."""
