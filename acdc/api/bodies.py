"""Request bodies: read within the size limit, and parsed off the event loop.

Routes take the bytes and parse them in their own thread, since a body may be megabytes of prompts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request

from acdc.api.services import Deps
from acdc.errors import SpecError

JSON = "application/json"
CIRCUIT_FILE = "application/octet-stream"


@dataclass(frozen=True)
class Body:
    data: bytes
    media_type: str

    def json(self) -> Any:
        """Raises HTTPException: 415 for another media type (no foreign page may send JSON), 400 for no JSON."""
        if self.media_type != JSON:
            raise HTTPException(415, f"the body is {self.media_type or 'of no stated type'}; send {JSON}")
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is no JSON: {error}") from None

    def mapping(self) -> dict[str, Any]:
        """As `json`; an empty body is an empty mapping. Raises SpecError for anything but a mapping."""
        if not self.data:
            return {}
        data = self.json()
        if not isinstance(data, dict):
            raise SpecError(f"the body must be a JSON object, like {{}}; this is {type(data).__name__}")
        return data


async def _read(request: Request, services: Deps) -> Body:
    limit = services.settings.max_body_bytes
    too_large = HTTPException(413, f"the body is larger than {limit} bytes, which is this server's limit")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise too_large
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Body(bytes(data), media_type)


RequestBody = Annotated[Body, Depends(_read)]
