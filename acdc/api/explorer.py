"""The explorer: the files of `acdc/web`, served as they are."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

import acdc

router = APIRouter(include_in_schema=False)

_WEB = Path(acdc.__file__).parent / "web"
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}


@router.get("/")
def get_index() -> FileResponse:
    return _file("index.html")


@router.get("/web/{name}")
def get_file(name: str) -> FileResponse:
    return _file(name)


def _file(name: str) -> FileResponse:
    """The name must be one of the folder's files: nothing is joined to a path before that is known."""
    files = {path.name: path for path in _WEB.iterdir() if path.suffix in _MEDIA_TYPES}
    if name not in files:
        raise HTTPException(404, "Not Found")
    return FileResponse(files[name], media_type=_MEDIA_TYPES[files[name].suffix], headers=_HEADERS)
