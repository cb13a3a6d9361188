"""The file driver: volumes and snapshots as sparse files on a file system that all workers share."""
