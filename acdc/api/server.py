"""Serve the app with uvicorn: bind first, so that a port in use is one clear sentence, and stop without hanging."""

from __future__ import annotations

import errno
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from acdc.errors import ServiceError
from acdc.settings import PREFIX, Settings

_STOP_WITHIN_S = 5  # for requests under way; event streams end at once


def bind(settings: Settings) -> socket.socket:
    """A listening socket at `host` and `port`. Raises ServiceError that says what to do when it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        place = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(f"{place} is in use: stop what serves there, or choose {PREFIX}PORT") from None
        raise ServiceError(f"cannot serve on {place}: {error.strerror}; choose {PREFIX}HOST and {PREFIX}PORT") from None
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """Ends the app's event streams as soon as it is asked to stop, since they would never end by themselves."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=_STOP_WITHIN_S,
            )
        )
        self._closing = app.state.services.closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._closing.set()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Ask it to stop, from any thread."""
        self._closing.set()
        self.should_exit = True


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    Server(app).run(sockets=[listener])
