"""Examines the settings and everything that an installation depends on, and says what is wrong and what to do."""
