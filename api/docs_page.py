"""The page ``/docs``: Swagger UI from files of this package, so that no script of another origin runs here."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import FileResponse

_FOLDER: Final = Path(__file__).parent / "static" / "swagger-ui"
#: The files that the page loads, and their media types. Nothing else in the folder is served.
_FILES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "docs.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
#: Browsers ask again after an hour: an upgrade changes the files.
_CACHED: Final = {"Cache-Control": "public, max-age=3600"}

router = APIRouter(prefix="/docs", include_in_schema=False)


@router.get("")
async def docs_page() -> FileResponse:
    """Return the page."""
    return FileResponse(_FOLDER / "index.html", media_type="text/html")


def _add_file(name: str, media_type: str) -> None:
    @router.get(f"/{name}", name=name)
    async def docs_file() -> FileResponse:
        return FileResponse(_FOLDER / name, media_type=media_type, headers=_CACHED)


for _name, _media_type in _FILES.items():
    _add_file(_name, _media_type)
