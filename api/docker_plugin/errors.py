"""Errors of the plugin, and problems of the API as an engine prints them: one sentence with the way out."""

from typing import Final

from api.cli.client import ApiCallFailed, ApiUnreachable, CommandFailed, JsonObject

_KEY_CODES: Final = ("key-missing", "key-invalid", "no-keys", "role-insufficient")


class PluginError(CommandFailed):
    """The plugin cannot do what the engine wants."""

    code = "docker-plugin"


class UnknownVolume(PluginError):
    """There is no volume of this name."""

    code = "docker-plugin-unknown-volume"


class PluginStopping(PluginError):
    """The plugin of Cistern is stopping: try again when it has started."""

    code = "docker-plugin-stopping"


def explanation(error: ApiCallFailed, node: str) -> str:
    """Return what a failed call means to a person at a container engine."""
    code = error.problem_code
    if code == "volume-attached":
        return f"{_attachment(error.problem)}: stop what uses it, `cistern attachments` shows all, and try again"
    if code == "volume-has-snapshots":
        return f"{error.message}: delete its snapshots first, `cistern snapshots list` shows them"
    if code == "unknown-node":
        return f"no `cistern node` has run on {node}: start it, or name another node in CISTERN_NODE of the plugin"
    if code in _KEY_CODES:
        return f"{error.message}: give the plugin a key that may change volumes in CISTERN_KEY"
    if isinstance(error, ApiUnreachable):
        return f"{error.message}: check CISTERN_URL of the plugin, and whether the API runs"
    return error.message


def failure(job: JsonObject) -> str:
    """Return why a job has not succeeded, and where to find more."""
    error = job.get("error") or {}
    reason = error.get("detail") or f"it is {job['status']}"
    return f"job {job['id']} ({job['kind']}) has not succeeded: {reason}"


def _attachment(problem: JsonObject) -> str:
    holder = f" by {problem['holder']}" if problem.get("holder") else ""
    since = f" since {problem['since']}" if problem.get("since") else ""
    return f"the volume is attached on node {problem.get('node')}{holder}{since}"
