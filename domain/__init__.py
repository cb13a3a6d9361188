"""Everything that the API and the worker share: volumes, snapshots, jobs and storage."""
