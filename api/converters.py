"""The path parameter of a volume's id. It matches any segment except those that are routes of their own.

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


register_url_convertor("id", _Id())

VOLUME: Final = "/{volume_id:id}"
