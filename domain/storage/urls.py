"""The URL of a storage backend: ``scheme:path?option=value&...``.

URLs are taken literally, without percent-decoding: a path may contain % and #.
"""

from dataclasses import dataclass, field
from typing import Self

from domain.errors import ConfigurationError


@dataclass
class DriverUrl:
    """A backend's URL in parts. A driver removes the options it knows from ``options``; all others are refused."""

    scheme: str
    path: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Split a URL into its parts."""
        scheme, _, rest = url.partition(":")
        path, _, query = rest.partition("?")
        options = (option.partition("=") for option in query.split("&") if option)
        return cls(scheme, path, {name: value for name, _, value in options})

    @property
    def driver(self) -> str:
        """The name of the driver that opens this URL: the scheme up to its first ``+``."""
        return self.scheme.partition("+")[0]

    @property
    def inner(self) -> Self:
        """The URL for the driver inside a wrapper: ``wrapper+scheme:`` without ``wrapper+``, sharing the options."""
        return type(self)(self.scheme.partition("+")[2], self.path, self.options)


def require_no_path(url: DriverUrl) -> None:
    """Refuse a path in the URL of a driver that has none.

    Raises:
        ConfigurationError: the URL has a path.
    """
    if url.path:
        raise ConfigurationError(f"{url.scheme}: takes no path, but has {url.path!r}")
