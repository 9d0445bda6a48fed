"""Answers that are files: pictures and downloads."""

from __future__ import annotations

from starlette.responses import Response

# A picture or a page that is opened by itself may style itself and do nothing else.
_HARMLESS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}


def html(text: str) -> Response:
    return Response(text, media_type="text/html; charset=utf-8", headers=_HARMLESS)


def svg(text: str) -> Response:
    return Response(text, media_type="image/svg+xml", headers=_HARMLESS)


def download(data: bytes, media_type: str, file_name: str) -> Response:
    return Response(data, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{file_name}"'})
