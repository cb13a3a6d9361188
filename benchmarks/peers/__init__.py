"""The peers, one module each, run by the peer's own Python as `python -m peers NAME COMMAND...`."""
