"""What the front of the house and the workshop share: volumes, snapshots, jobs and storage."""
