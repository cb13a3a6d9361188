"""Bulk expansion: many volumes grow by one job, each as the policy says; how, is told in `domain.bulk`."""
