"""Snapshots: a volume's bytes as they were at one moment.

taking ──▶ ready ──▶ restoring | cloning ──▶ ready
│         │
│         └──▶ deleting ──▶ (gone)
▼                 ▼
error ◀─────────────┘          error ──▶ deleting
"""
