"""The parameters of storage classes and snapshot classes, which are text, as members of a request to the API."""

from collections.abc import Mapping
from typing import Any, Final

from api.cli.autogrow import parse_autogrow
from api.csi.errors import invalid
from domain.storage.filesystems import FILESYSTEMS

#: Parameters of the orchestrator itself. Those that name its own objects become labels.
_RESERVED: Final = "csi.storage.k8s.io/"
FILESYSTEM: Final = f"{_RESERVED}fstype"
_VOLUME_PARAMETERS: Final = ("autogrow", "backend", "labels")
_SNAPSHOT_PARAMETERS: Final = ("allow_torn", "labels")


def volume_members(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the members `backend`, `labels` and `autogrow` of a new volume.

    Raises:
        CallRejected: a parameter is unknown or malformed.
    """
    _refuse_unknown(parameters, _VOLUME_PARAMETERS)
    members: dict[str, Any] = {}
    if backend := parameters.get("backend"):
        members["backend"] = backend
    if labels := _labels(parameters):
        members["labels"] = labels
    if autogrow := parameters.get("autogrow"):
        members["autogrow"] = _autogrow(autogrow)
    return members


def filesystem_parameter(parameters: Mapping[str, str]) -> str | None:
    """Return the file system that the parameters name; None if they do not.

    Raises:
        CallRejected: Cistern does not make it.
    """
    name = parameters.get(FILESYSTEM) or None
    if name is not None and name not in FILESYSTEMS:
        raise invalid(f"{FILESYSTEM}: {name!r} is not one of {', '.join(FILESYSTEMS)}")
    return name


def snapshot_members(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the members `labels` and `allow_torn` of a new snapshot.

    Raises:
        CallRejected: a parameter is unknown or malformed.
    """
    _refuse_unknown(parameters, _SNAPSHOT_PARAMETERS)
    members: dict[str, Any] = {}
    if labels := _labels(parameters):
        members["labels"] = labels
    if torn := parameters.get("allow_torn"):
        if torn not in ("true", "false"):
            raise invalid(f"allow_torn: {torn!r} is neither true nor false")
        members["allow_torn"] = torn == "true"
    return members


def _refuse_unknown(parameters: Mapping[str, str], known: tuple[str, ...]) -> None:
    unknown = sorted(name for name in parameters if name not in known and not name.startswith(_RESERVED))
    if unknown:
        raise invalid(f"unknown parameters: {', '.join(unknown)}; there are {', '.join(known)}")


def _labels(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return what `labels` has as KEY=VALUE, separated by commas, and the names of the orchestrator's objects."""
    reserved = {name: value for name, value in parameters.items() if name.startswith(_RESERVED)}
    labels = {name: value for name, value in reserved.items() if name.endswith(("/name", "/namespace"))}
    for term in filter(None, parameters.get("labels", "").split(",")):
        key, sign, value = term.partition("=")
        if not sign or not key.strip():
            raise invalid(f"labels: {term!r} is not KEY=VALUE")
        labels[key.strip()] = value.strip()
    return labels


def _autogrow(text: str) -> dict[str, Any]:
    try:
        return parse_autogrow(text)
    except ValueError as error:
        raise invalid(f"autogrow: {error}") from None
