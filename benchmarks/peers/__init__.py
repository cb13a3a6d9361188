"""The peers, a file for each; every one is run by a Python that has the peer, `python -m peers NAME QUESTION...`."""
