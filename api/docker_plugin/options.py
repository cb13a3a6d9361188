"""The options of a new volume, as ``docker volume create -o`` passes them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from api.cli.autogrow import parse_autogrow
from api.cli.client import JsonObject
from api.cli.sizes import size_of, size_text
from api.docker_plugin.errors import PluginError
from api.schemas.fields import SIZE_PATTERN, parse_size
from domain.storage.filesystems import FILESYSTEMS
from domain.volumes.model import rounded_down, rounded_up

DEFAULT_FILESYSTEM: Final = "ext4"
_LABEL: Final = "label."
_NAMES: Final = ("size", "filesystem", "backend", "autogrow", "from_snapshot", "from_volume")


@dataclass(frozen=True)
class Options:
    """What is wanted of a volume; None means that nothing is said."""

    size: int | None = None
    filesystem: str | None = None
    backend: str | None = None
    autogrow: JsonObject | None = None
    from_snapshot: str | None = None
    from_volume: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_source(self) -> bool:
        """Whether the volume starts with the bytes of another one."""
        return self.from_snapshot is not None or self.from_volume is not None


def parse_options(options: Mapping[str, str]) -> Options:
    """Return the options of a volume.

    Raises:
        PluginError: one is unknown or malformed; the message names it.
    """
    for name in options:
        if name not in _NAMES and not (name.startswith(_LABEL) and name != _LABEL):
            raise PluginError(f"unknown option {name!r}: the options are {', '.join(_NAMES)} and label.KEY")
    filesystem = options.get("filesystem")
    if filesystem is not None and filesystem not in FILESYSTEMS:
        raise PluginError(f"option filesystem: {filesystem!r} is none of {', '.join(FILESYSTEMS)}")
    if "from_snapshot" in options and "from_volume" in options:
        raise PluginError("options from_snapshot and from_volume: a volume starts with one of them")
    return Options(
        size=bytes_of("size", options["size"]) if "size" in options else None,
        filesystem=filesystem,
        backend=options.get("backend"),
        autogrow=_autogrow(options["autogrow"]) if "autogrow" in options else None,
        from_snapshot=options.get("from_snapshot"),
        from_volume=options.get("from_volume"),
        labels={name.removeprefix(_LABEL): value for name, value in options.items() if name.startswith(_LABEL)},
    )


def bytes_of(option: str, text: str) -> int:
    """Return the size in bytes of a volume for which this one is requested.

    Raises:
        PluginError: the text is none; the message names the option.
    """
    return rounded_up(_bytes(option, size_of(text)))


def differences(volume: JsonObject, wanted: Options, source: Mapping[str, str] | None) -> Iterator[str]:
    """Yield in words in what an existing volume differs from what is wanted; it may be larger, for volumes grow."""
    if wanted.size is not None and volume["size"] < wanted.size:
        yield f"its size is {size_text(volume['size'])}, less than {size_text(wanted.size)}"
    if wanted.filesystem not in (None, volume["filesystem"]):
        yield f"its file system is {volume['filesystem']}, not {wanted.filesystem}"
    if wanted.backend not in (None, volume["backend"]):
        yield f"its backend is {volume['backend']}, not {wanted.backend}"
    for key, value in wanted.labels.items():
        if volume["labels"].get(key) != value:
            yield f"its label {key} is {volume['labels'].get(key, 'missing')}, not {value}"
    if wanted.autogrow is not None and wanted.autogrow != volume["autogrow"]:
        yield "its autogrow policy is another one" if volume["autogrow"] else "it has no autogrow policy"
    if source is not None and source != volume["source"]:
        yield "it was not made from this source"


def _bytes(option: str, size: str | int) -> int:
    if isinstance(size, int):
        return size
    if re.fullmatch(SIZE_PATTERN, size) is None:
        raise PluginError(f"option {option}: {size!r} is no size such as 10GiB")
    return parse_size(size)


def _autogrow(text: str) -> JsonObject:
    """Return the policy as the API shows it, so that it can be compared with that of a volume."""
    try:
        policy = parse_autogrow(text)
    except ValueError as error:
        raise PluginError(f"option autogrow: {error}") from None
    if "by" in policy:
        policy["by"] = rounded_up(_bytes("autogrow", policy["by"]))
    return policy | {"up_to": rounded_down(_bytes("autogrow", policy["up_to"]))}
