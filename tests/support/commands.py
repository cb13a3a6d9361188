"""The commands of the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from api.cli.app import app


def commands() -> Mapping[str, Sequence[str]]:
    """Return the names of all commands, each with its subcommands."""
    root: Any = typer.main.get_command(app)
    context = typer.Context(root)
    found = {name: root.get_command(context, name) for name in root.list_commands(context)}
    return {name: list(getattr(command, "commands", ())) for name, command in found.items()}


def written() -> set[str]:
    """Return all commands as they are written after `cistern`."""
    return {f"{name} {one}".strip() for name, subcommands in commands().items() for one in subcommands or [""]}
