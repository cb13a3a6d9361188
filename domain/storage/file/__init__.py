"""The file driver: volumes and snapshots as files on a file system that all workers share."""
