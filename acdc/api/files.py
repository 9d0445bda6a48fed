"""Answers that are files: pictures and downloads."""

from __future__ import annotations

from starlette.responses import Response

# A picture that is opened by itself may style itself and do nothing else.
_SVG_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}


def svg(text: str) -> Response:
    return Response(text, media_type="image/svg+xml", headers=_SVG_HEADERS)


def download(data: bytes, media_type: str, file_name: str) -> Response:
    return Response(data, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{file_name}"'})
