"""Jobs: durable rows that workers claim, carry out and settle. Knows a kind and a payload, never a volume.

    queued ──claim──▶ running ──settle──▶ succeeded | partial | failed | cancelled
      │                  │
      │                  └──retry, rescue, interruption──▶ queued (one ring more)
      └──cancel before it was ever started──▶ cancelled

The row is the truth and the outbox; arq is the doorbell. A message carries (job id, ring) and nothing else.
"""
