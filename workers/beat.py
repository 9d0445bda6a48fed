"""The heartbeat of one claimed job, in a thread of its own: outside the computing and outside slow uploads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from acdc.errors import Conflict, DatabaseError, StorageError
from acdc.store import Claim, Store
from workers.logs import LogTail

logger = logging.getLogger(__name__)
_AFTER_A_GAP_S = 0.5  # a beat that failed is due again sooner than a whole period


class Heart:
    """Keeps the lease, tells progress and log, and brings back what the others decided.

    is_cancelled: someone asked for the job's end. is_lost: the job is not ours any more, nothing of it may be written.
    """

    def __init__(self, store: Store, claim: Claim, log: LogTail, beat_s: float) -> None:
        self._store = store
        self._claim = claim
        self._log = log
        self._unsent: list[str] = []
        self._beat_s = beat_s
        self._progress: Mapping[str, Any] | None = None
        self._is_over = threading.Event()
        self.is_cancelled = threading.Event()
        self.is_lost = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"heart of {claim.job.id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The last write is to come: from now on nothing else may touch the claim."""
        self._is_over.set()
        self._thread.join()

    def tell(self, progress: Mapping[str, Any]) -> None:
        """What the next beat reports."""
        self._progress = progress

    def beat(self) -> None:
        """One beat, now. Raises DatabaseError or StorageError when the store cannot be written."""
        answer = self._store.claims.heartbeat(self._claim, self._progress)
        if answer.lost:
            self.is_lost.set()
        elif answer.cancel:
            self.is_cancelled.set()

    def send_log(self, *, is_over: bool = False) -> None:
        """Raises DatabaseError or StorageError when the store cannot be written; then the next call sends it too."""
        self._unsent += self._log.lines(is_over=is_over)
        if self._unsent:
            try:
                self._store.claims.add_log(self._claim, self._unsent)
            except Conflict:
                return  # the next beat says what that means
            self._unsent = []

    def _live(self) -> None:
        pause = 0.0  # the first beat at once: a cancel may have come with the claim
        while not self._is_over.wait(pause):
            try:
                self.beat()
                self.send_log()
                pause = self._beat_s
            except (DatabaseError, StorageError) as error:
                logger.warning("job %s: no heartbeat: %s", self._claim.job.id, error.message)
                pause = min(self._beat_s, _AFTER_A_GAP_S)
            if self.is_lost.is_set():
                return
