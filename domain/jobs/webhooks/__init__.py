"""Webhooks: who is told what has happened in a project, by jobs of their own."""
