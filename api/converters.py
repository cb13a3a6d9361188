"""What may stand in the place of an id in an address; not what is an address of its own, for every method.

Such are ``/volumes/expand`` and ``/volumes/snapshots``. An id that is none is still a request about a thing, and
refused as such.
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
