"""The door: which hosts are answered, who may ask, and the headers that every response carries."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acdc.api.problems import problem, problem_of
from acdc.errors import SpecError, Unauthorized
from acdc.settings import PREFIX, Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Open without a key: is it alive, and the explorer's own files, which hold no data and ask for the key themselves.
_OPEN = ("/healthz", "/readyz", "/")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cache-Control": "no-store",
}


def check_binding(settings: Settings) -> None:
    """Raises SpecError for a server that others can reach and that asks nobody for a key."""
    if not settings.is_loopback and settings.api_key is None:
        raise SpecError(
            f"refusing to serve on {settings.host} without a key, since other machines could reach it: "
            f"set {PREFIX}API_KEY, or {PREFIX}HOST=127.0.0.1"
        )


class Guard:
    """Pure ASGI. Checks the Host header (a foreign name for this address is a rebinding attack) and the bearer key."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.key = settings.api_key.get_secret_value().encode() if settings.api_key else None
        self.hosts = _known_hosts(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        response: ASGIApp = self.app
        if self.hosts is not None and host not in self.hosts:
            response = problem(421, "unknown_host", f"this server is not {host!r}; {PREFIX}HOSTS lists its names")
        elif not self._may_pass(scope["path"], headers.get("authorization", "")):
            response = problem_of(Unauthorized("this server wants its key: Authorization: Bearer <key>"))
        await response(scope, receive, send_with_headers)

    def _may_pass(self, path: str, authorization: str) -> bool:
        if self.key is None or path in _OPEN or path.startswith("/web/"):
            return True
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.key)


def _host_name(header: str) -> str:
    """The name in a Host header, without port and brackets; empty for one that cannot be read."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _known_hosts(settings: Settings) -> frozenset[str] | None:
    """None: any name. A server open to others has names that it cannot know, and its key keeps foreign pages out."""
    if settings.hosts is None and not settings.is_loopback:
        return None
    of_url = urlsplit(settings.url).hostname
    return frozenset(name.lower() for name in (*LOOPBACK, settings.host, *(settings.hosts or ()), of_url) if name)
