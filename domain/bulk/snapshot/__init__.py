"""Bulk snapshots: one job takes a snapshot of many volumes."""
