"""The path parameters of ids. That of a volume matches any segment except those that are routes of their own.

``/volumes/expand`` and ``/volumes/snapshots`` are such routes, for every method. Any other malformed id reaches the
route and is rejected with 422.
"""

from typing import Final

from starlette.convertors import Convertor, register_url_convertor


class _Id(Convertor[str]):
    regex = "(?!(?:expand|snapshots)(?:/|$))[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Hyphenated(_Id):
    """A UUID in its usual form. Starlette's own convertor lets hyphens be left out where Pydantic refuses it."""

    regex = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


register_url_convertor("id", _Id())
register_url_convertor("hyphenated", _Hyphenated())

VOLUME: Final = "/{volume_id:id}"
