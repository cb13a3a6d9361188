"""`python -m peers NAME QUESTION...`, by a Python that has the peer."""

import sys
from importlib import import_module

from peers.peer import answer

# Not as a program of its own: workers find tasks by the name of the module in which they were made.
answer(import_module(f"peers.{sys.argv[1]}"), sys.argv[2:])
