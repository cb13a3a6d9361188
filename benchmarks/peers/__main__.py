"""Entry point of `python -m peers NAME COMMAND...`, run by the peer's own Python."""

import sys
from importlib import import_module

from peers.peer import run_command

# Import the module instead of running it as __main__: workers find tasks by the name of the defining module.
run_command(import_module(f"peers.{sys.argv[1]}"), sys.argv[2:])
