"""Settings of commands that work on the servers themselves: those of the environment, or of a running `cistern up`."""

import shlex
from pathlib import Path

from domain.settings import PREFIX, Settings, load_settings


def load_local_settings() -> tuple[Settings, str]:
    """Return the settings and where they are from. A running `cistern up` counts if they name no database.

    Raises:
        ConfigurationError: a setting is invalid.
    """
    settings = load_settings()
    file = settings.data_dir / "env"
    if settings.database_url or not file.exists():
        return settings, "the environment and .env"
    variables = _variables(file)
    urls = {name: variables[f"{PREFIX}{name.upper()}"] for name in ("database_url", "redis_url")}
    return load_settings(**urls), f"{file}, of a running `cistern up`"


def _variables(file: Path) -> dict[str, str]:
    """Read a file of variables that is written for a shell."""
    pairs = (line.partition("=") for line in file.read_text().splitlines())
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}
