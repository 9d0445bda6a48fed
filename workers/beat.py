"""The heartbeat of one claimed job, in a thread of its own: outside the computing and outside slow uploads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from acdc.errors import Conflict, DatabaseError, StorageError
from acdc.store import Beat, Claim, Store
from workers.logs import LogTail

logger = logging.getLogger(__name__)
_LOOK_S = 1.0  # between two looks at what is new: steps to tell, lines of the log, a cancel
_AFTER_A_GAP_S = 0.5  # a beat that failed is due again sooner than a whole period


class Heart:
    """Keeps the lease, tells progress and log, and brings back what the others decided.

    Progress is told when a phase begins, and of its steps the latest once a second; the lease is extended with it, and
    every `beat_s` where there is nothing to tell.
    is_cancelled: someone asked for the job's end. is_lost: the job is not ours any more, nothing of it may be written.
    """

    def __init__(self, store: Store, claim: Claim, log: LogTail, beat_s: float) -> None:
        self._store = store
        self._claim = claim
        self._log = log
        self._unsent: list[str] = []
        self._beat_s = beat_s
        self._next_beat = 0.0
        self._untold: list[Mapping[str, Any]] = []  # one for each phase, in order
        self._phase: object = None  # of what was put there last
        self._lock = threading.Lock()
        self._is_over = False
        self._wake = threading.Event()
        self.is_cancelled = threading.Event()
        self.is_lost = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"heart of {claim.job.id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The last writes are to come: from now on nothing else may touch the claim."""
        self._is_over = True
        self._wake.set()
        self._thread.join()

    def tell(self, progress: Mapping[str, Any]) -> None:
        """Where the run is. Every phase is told, of its steps the latest."""
        phase = progress.get("phase")
        is_new, self._phase = phase != self._phase, phase
        with self._lock:
            if not is_new and self._untold:
                self._untold.pop()
            self._untold.append(progress)
        if is_new:
            self._wake.set()

    def send_rest(self) -> None:
        """The progress not told yet, and the log to its end. Raises DatabaseError or StorageError when the store cannot
        be written; then the next call sends what is left."""
        self._tell_untold()
        self._send_log(is_over=True)

    def _look(self) -> None:
        """Tell what is new, and hear what the others decided."""
        self._tell_untold()
        if time.monotonic() >= self._next_beat:
            self._beat(None)
        else:
            self._hear(self._store.claims.look(self._claim))
        self._send_log(is_over=False)

    def _tell_untold(self) -> None:
        for _ in range(len(self._untold)):  # steps that come meanwhile wait for the next look
            told = self._untold[0]
            self._beat(told)
            with self._lock:
                if self._untold[0] is told:  # else a later step has taken its place
                    del self._untold[0]

    def _beat(self, progress: Mapping[str, Any] | None) -> None:
        self._hear(self._store.claims.heartbeat(self._claim, progress))
        self._next_beat = time.monotonic() + self._beat_s

    def _hear(self, answer: Beat) -> None:
        if answer.lost:
            self.is_lost.set()
        elif answer.cancel:
            self.is_cancelled.set()

    def _send_log(self, *, is_over: bool) -> None:
        try:
            self._unsent += self._log.lines(is_over=is_over)
        except OSError as error:  # costs the log, never the job
            logger.warning("job %s: its log cannot be read: %s", self._claim.job.id, error)
        if self._unsent:
            try:
                self._store.claims.add_log(self._claim, self._unsent)
            except Conflict:
                return  # the next look says what that means
            self._unsent = []

    def _live(self) -> None:
        pause = 0.0  # the first beat at once: a cancel may have come with the claim
        while True:
            self._wake.wait(pause)
            self._wake.clear()  # before the looks: what is set after them is for the next round
            if self._is_over:
                return
            pause = min(self._beat_s, _LOOK_S)
            try:
                self._look()
            except (DatabaseError, StorageError) as error:
                logger.warning("job %s: no heartbeat: %s", self._claim.job.id, error.message)
                pause = min(self._beat_s, _AFTER_A_GAP_S)
            except Exception:  # the edge of a thread: without it the lease ends, and the job runs twice
                logger.exception("job %s: a heartbeat failed", self._claim.job.id)
            if self.is_lost.is_set():
                return
