"""Bulk expansion: one job grows many volumes, each as the growth policy says."""
