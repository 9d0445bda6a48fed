"""Getting a write through although the database comes and goes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from acdc.errors import DatabaseError, StorageError

logger = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

Answer = TypeVar("Answer")


class GaveUpError(Exception):
    """The worker has to go and the write is not done; the end of the lease will tell the others."""


class Patience:
    """Repeats what fails for a reason that may pass, with longer and longer pauses.

    Without end while the worker lives; once it was told to go (`leaving` is set), for `grace_s` more.
    """

    def __init__(self, leaving: threading.Event, grace_s: float) -> None:
        self._leaving = leaving
        self._grace_s = grace_s
        self._left_at: float | None = None

    def get(self, what: str, action: Callable[[], Answer]) -> Answer:
        """What `action` answers. Raises GaveUpError, and at once every error that repeating does not mend."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except (DatabaseError, StorageError) as error:
                if not error.is_retryable:
                    raise
                logger.warning("%s: %s; trying again", what, error)
            if self._is_over():
                raise GaveUpError(what)
            self._wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _wait(self, pause: float) -> None:
        if self._leaving.is_set():
            time.sleep(min(pause, self._grace_s))
        else:
            self._leaving.wait(pause)

    def _is_over(self) -> bool:
        if not self._leaving.is_set():
            return False
        self._left_at = self._left_at or time.monotonic()
        return time.monotonic() - self._left_at > self._grace_s
