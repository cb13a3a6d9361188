"""Repositories of the tables of jobs and workers, one module per purpose. They take a session and never commit."""
