"""``python -m api.cli``: the command ``cistern``, for places where it is not on the PATH."""

from api.cli.app import main

main()
