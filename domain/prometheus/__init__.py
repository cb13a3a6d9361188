"""The metrics of a process in the format of Prometheus. Imported only if `CISTERN_METRICS` is set."""
