"""Bulk snapshots: one job takes a snapshot of each of many volumes."""
