"""The agent of a host that uses volumes."""
