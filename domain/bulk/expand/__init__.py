"""Bulk expansion: one job expands many volumes by a growth policy."""
