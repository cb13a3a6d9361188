"""The URL of a storage backend: ``scheme:place?option=value&...``.

URLs are taken literally, nothing in them is percent-decoded: a path with a % or a # is just that path.
"""

from dataclasses import dataclass, field
from typing import Self

from domain.errors import ConfigurationError


@dataclass
class DriverUrl:
    """A backend's URL in parts. A driver takes the options that it knows out of ``options``; the rest is refused."""

    scheme: str
    place: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Split a URL into its parts."""
        scheme, _, rest = url.partition(":")
        place, _, query = rest.partition("?")
        options = (part.partition("=") for part in query.split("&") if part)
        return cls(scheme, place, {name: value for name, _, value in options})

    @property
    def driver(self) -> str:
        """The driver that opens this URL: the scheme, up to its first ``+``."""
        return self.scheme.partition("+")[0]

    @property
    def inner(self) -> Self:
        """The URL of the driver inside a wrapper: ``wrapper+scheme:`` without the wrapper, and the same options."""
        return type(self)(self.scheme.partition("+")[2], self.place, self.options)


def require_no_place(url: DriverUrl) -> None:
    """Refuse a path after the scheme of a driver that has none.

    Raises:
        ConfigurationError: a path was given.
    """
    if url.place:
        raise ConfigurationError(f"{url.scheme}: takes no path, but has {url.place!r}")
