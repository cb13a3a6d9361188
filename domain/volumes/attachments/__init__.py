"""Attachments: who uses a volume, on which node, and where it is mounted there."""
