"""The worker process: claims jobs and has them done, one engine process per slot. Imports no torch itself.

    python -m workers.worker [--slots N] [--resource-class NAME]

Everything else comes from the environment (`acdc.settings`). Any number of workers share a database; each also sweeps
up what others left (`Store.reaper`). The first SIGTERM or SIGINT drains: nothing more is claimed, running jobs stop at
their next step and go back to the queue with their checkpoint, without having used an attempt, and the process ends
within `child_grace_s`, and as much again where the database does not answer. A second signal ends it now; then the
leases run out, and other workers resume.

Exit status: 0 drained; 1 it could not start, or its database is of no more use; 143 ended by a second signal.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from acdc.errors import AcdcError
from acdc.settings import Settings, load_settings
from acdc.store import DEFAULT_CLASS, Artefacts, Claim, Store, migrate
from workers.attempt import Attempt, Place
from workers.executor import ENGINE, EngineChild
from workers.patience import GaveUpError, Patience

logger = logging.getLogger("workers")
_LOOK_S = 0.1  # between two looks at signals
_COLLECT_EVERY_S = 3600.0
_KILLED = 143


class Worker:
    """slots: jobs at a time, each with an engine process and its models. engine: the program of that process."""

    def __init__(self, settings: Settings, *, slots: int = 1, resource_class: str = DEFAULT_CLASS) -> None:
        self._settings = settings
        self._slots = slots
        self._resource_class = resource_class
        self._leaving = threading.Event()
        self._patience = Patience(self._leaving, settings.child_grace_s)
        self._children: list[EngineChild] = []
        self._hopeless: AcdcError | None = None

    def run(self, engine: Sequence[str] = ENGINE) -> None:
        """Until `drain` was called and every job is given back. Raises AcdcError when it cannot start or go on."""
        url = self._settings.database_url
        try:
            self._patience.get("preparing the database", lambda: migrate(url))
            store = self._patience.get("opening the database", lambda: Store.open(url))
        except GaveUpError:
            return
        with store:
            artefacts = Artefacts.open(self._settings.artefacts_url)
            place = Place(store, artefacts, self._settings, self._leaving, self._patience)
            threads = [threading.Thread(target=self._sweep, args=(place,), name="reaper")]
            for number in range(self._slots):
                child = EngineChild(grace_s=self._settings.child_grace_s, command=engine)
                self._children.append(child)
                name = f"{socket.gethostname()}:{os.getpid()}:{number}"
                threads.append(threading.Thread(target=self._serve, args=(place, child, name), name=f"slot {number}"))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if self._hopeless is not None:
            raise self._hopeless

    def drain(self) -> None:
        """Claim no more, give back what runs."""
        self._leaving.set()

    def kill(self) -> None:
        """End the runs now."""
        for child in self._children:
            child.kill()

    def _serve(self, place: Place, child: EngineChild, name: str) -> None:
        """One slot. The thread lives as long as its engine process, see `workers.parent`."""
        try:
            while not self._leaving.is_set():
                claim = self._claim(place.store, name)
                if claim is None:
                    self._leaving.wait(self._settings.poll_s)
                    continue
                logger.info("%s runs job %s, attempt %d", name, claim.job.id, claim.job.attempt)
                try:
                    Attempt(place, claim, child).run()
                except GaveUpError as what:
                    logger.warning("job %s is left to the end of its lease: %s", claim.job.id, what)
                except Exception as error:  # the edge of a slot: the next job must run
                    logger.exception("job %s broke its worker", claim.job.id)
                    child.close()
                    _fail_broken(place.store, claim, error, name)
        finally:
            child.close()

    def _claim(self, store: Store, name: str) -> Claim | None:
        try:
            return store.claims.claim(name, self._resource_class, lease_s=self._settings.lease_s)
        except Exception as error:  # noqa: BLE001 - the edge of a slot
            self._take_failure("look for work", error)
            return None

    def _sweep(self, place: Place) -> None:
        settings, next_collection = self._settings, time.monotonic() + _COLLECT_EVERY_S
        while not self._leaving.wait(settings.reap_s):
            try:
                reaped = place.store.reaper.sweep(sweep_s=settings.reap_s, lease_s=settings.lease_s)
                if reaped.requeued or reaped.cancelled or reaped.timed_out:
                    logger.info("swept up: %s", reaped)
                if time.monotonic() >= next_collection:
                    next_collection = time.monotonic() + _COLLECT_EVERY_S
                    place.artefacts.collect(place.store.artefacts_in_use)
            except Exception as error:  # noqa: BLE001 - the edge of a thread
                self._take_failure("sweep", error)

    def _take_failure(self, what: str, error: Exception) -> None:
        """Between jobs: what may pass is tried again, also what nobody foresaw; what cannot ends the worker."""
        if not isinstance(error, AcdcError):
            logger.error("cannot %s; trying again", what, exc_info=error)
        elif error.is_retryable:
            logger.warning("cannot %s: %s", what, error.message)
        else:
            self._hopeless = error
            self.drain()


def _fail_broken(store: Store, claim: Claim, error: Exception, name: str) -> None:
    """So that it does not break one worker after the other; what cannot be written is left to the end of the lease."""
    code = "storage" if isinstance(error, OSError) else "internal"
    try:
        store.claims.fail(
            claim, code, f"worker {name} failed around the engine ({type(error).__name__}); see its own log"
        )
    except Exception as refusal:  # noqa: BLE001 - the edge of a slot
        logger.warning("job %s is left to the end of its lease: %s", claim.job.id, refusal)


def main(argv: Sequence[str] | None = None, *, engine: Sequence[str] = ENGINE) -> int:
    """The exit status."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: signals.append(number))
    try:
        worker = Worker(load_settings(), slots=options.slots, resource_class=options.resource_class)
    except AcdcError as error:
        logger.error("%s", error)
        return 1
    failures: list[Exception] = []
    # Beside the main thread, which has to be free for signals, whatever the database does.
    running = threading.Thread(target=_run, args=(worker, engine, failures), name="worker", daemon=True)
    running.start()
    _watch(running, worker, signals)
    for failure in failures:
        logger.error("%s", failure, exc_info=None if isinstance(failure, AcdcError) else failure)
    return 1 if failures else 0


def _run(worker: Worker, engine: Sequence[str], failures: list[Exception]) -> None:
    try:
        worker.run(engine)
    except Exception as error:  # noqa: BLE001 - the edge of the process
        failures.append(error)


def _watch(running: threading.Thread, worker: Worker, signals: list[int]) -> None:
    """Until the worker has ended; passes on what signals mean."""
    while running.is_alive():
        if signals:
            worker.drain()
        if len(signals) > 1:
            worker.kill()
            os._exit(_KILLED)
        running.join(_LOOK_S)


def _parse(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="python -m workers.worker", description="Claim jobs and have them done.")
    parser.add_argument("--slots", type=int, default=1, help="jobs at a time")
    parser.add_argument("--resource-class", default=DEFAULT_CLASS, help="which jobs to claim")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
