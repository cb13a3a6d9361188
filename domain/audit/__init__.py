"""The audit log: who asked for which change, recorded in the transaction that accepts it."""
