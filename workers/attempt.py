"""One claim of a job, from the claim to the row's next state."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import AcdcError, Conflict, DatabaseError, Fault, StorageError
from acdc.settings import Settings
from acdc.store import Artefacts, CheckpointRef, Claim, Store
from acdc.version import ENGINE_VERSION
from workers.beat import Heart
from workers.executor import Died, EngineChild, Heard
from workers.logs import LogTail
from workers.patience import Patience
from workers.results import to_store
from workers.wire import Done, Failed, Found, Phase, Saved, Step, Stopped

logger = logging.getLogger(__name__)
_LOOK_S = 0.1  # between two looks at what the engine does not say: drain, lost lease
_UPLOAD_TRIES = 3


@dataclass(frozen=True)
class Place:
    """What every attempt of a worker shares. leaving: set when the worker is drained."""

    store: Store
    artefacts: Artefacts
    settings: Settings
    leaving: threading.Event
    patience: Patience


class Attempt:
    """Runs the claimed job in `child`. Call `run` once."""

    def __init__(self, place: Place, claim: Claim, child: EngineChild) -> None:
        self._place = place
        self._claim = claim
        self._job = claim.job
        self._child = child
        self._source: Circuit | None = None
        self._progress: dict[str, Any] = {}
        self._pending: Saved | None = None
        self._next_upload = 0.0
        self._found: list[Found] = []

    def run(self) -> None:
        """Returns when the row says how it ended, or the job is not ours any more. Raises GaveUpError."""
        with tempfile.TemporaryDirectory(prefix="acdc-job-") as name:
            scratch = Path(name)
            log = scratch / "log.txt"
            self._heart = Heart(self._place.store, self._claim, LogTail(log), self._place.settings.beat_s)
            self._heart.start()
            try:
                end = self._work(scratch, log)
                end = self._upload_results(end)
            finally:
                self._heart.stop()
            if not self._heart.is_lost.is_set():
                self._finish(end)

    # -- while it runs -------------------------------------------------------------------------------------------------

    def _work(self, scratch: Path, log: Path) -> Callable[[], object]:
        """How the row is to end: a write of the store."""
        try:
            source = self._fetch_source(scratch)
            checkpoint = self._fetch_checkpoint(scratch)
        except AcdcError as error:
            return self._failing(error.job_code, error.message)
        self._child.begin(dict(self._job.spec), scratch=scratch, log=log, source=source, checkpoint=checkpoint)
        while True:
            if self._heart.is_lost.is_set():
                self._child.kill()
            elif self._heart.is_cancelled.is_set() or self._place.leaving.is_set():
                self._child.cancel()
            heard = self._child.hear(_LOOK_S)
            if isinstance(heard, Done | Stopped | Failed | Died):
                return self._ending(heard)
            self._note(heard)
            self._upload_checkpoint()

    def _note(self, heard: Heard | None) -> None:
        match heard:
            case Phase(name=name, total=total):
                self._progress = {"phase": name, "done": 0, "total": total, "note": ""}
                self._heart.tell(self._progress)
            case Step(done=done, note=note):
                self._progress = {**self._progress, "done": done, "note": note}
                self._heart.tell(self._progress)
            case Saved():
                if self._pending is not None:
                    Path(self._pending.path).unlink(missing_ok=True)
                self._pending = heard
            case Found():
                self._found.append(heard)

    def _ending(self, heard: Heard) -> Callable[[], object]:
        claims, claim = self._place.store.claims, self._claim
        self._next_upload = 0.0
        self._upload_checkpoint()  # before a death is counted: a new checkpoint clears the count
        match heard:
            case Failed():
                return self._failing(heard.job_code, heard.message, tuple(Fault(**fault) for fault in heard.faults))
            case Done():
                return self._succeeding
            case _ if self._heart.is_cancelled.is_set():
                return lambda: claims.finish_cancelled(claim)
            case Died(reason=reason) if not self._place.leaving.is_set():
                return lambda: claims.child_died(claim, reason)
            case _:
                return lambda: claims.release(claim)

    def _failing(self, code: str, message: str, faults: tuple[Fault, ...] = ()) -> Callable[[], object]:
        return lambda: self._place.store.claims.fail(self._claim, code, message, faults)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _fetch_source(self, scratch: Path) -> Path | None:
        circuit_id = self._job.spec.get("circuit")
        if circuit_id is None:
            return None
        store, path = self._place.store, scratch / "source.safetensors"
        row = self._place.patience.get("reading a circuit", lambda: store.circuits.get(circuit_id)).row
        path.write_bytes(self._place.artefacts.get(row.artefact))
        self._source = Circuit.load(path)
        return path

    def _fetch_checkpoint(self, scratch: Path) -> Path | None:
        """A checkpoint that cannot be had costs time, never the job."""
        ref = self._job.checkpoint
        if ref is None or ref.engine_version != ENGINE_VERSION:
            return None
        path = scratch / "resume.safetensors"
        try:
            path.write_bytes(self._place.artefacts.get(ref.digest))
        except StorageError as error:
            logger.warning("job %s starts over: %s", self._job.id, error.message)
            return None
        return path

    def _upload_checkpoint(self) -> None:
        """The latest one, at most once a beat; what fails is tried again with the next one."""
        now = time.monotonic()
        if self._pending is None or now < self._next_upload or self._heart.is_lost.is_set():
            return
        self._next_upload = now + self._place.settings.beat_s
        saved = self._pending
        try:
            digest = self._place.artefacts.put(Path(saved.path).read_bytes())
            ref = CheckpointRef(digest, saved.step, ENGINE_VERSION)
            self._place.store.claims.save_checkpoint(self._claim, ref)
        except (DatabaseError, StorageError) as error:
            logger.warning("job %s: checkpoint %d is not stored yet: %s", self._job.id, saved.step, error.message)
        except Conflict:
            pass  # the next beat says what that means
        else:
            Path(saved.path).unlink()
            self._pending = None

    def _upload_results(self, end: Callable[[], object]) -> Callable[[], object]:
        if end != self._succeeding:
            return end
        for left in reversed(range(_UPLOAD_TRIES)):
            try:
                self._results = [
                    to_store(found, self._job.spec, self._source, self._place.artefacts) for found in self._found
                ]
                return end
            except StorageError as error:
                logger.warning("job %s: its results cannot be stored: %s", self._job.id, error.message)
                if not left:
                    return self._failing(error.job_code, error.message)
                self._place.leaving.wait(1)
        raise AssertionError("the loop returns")

    # -- the end -------------------------------------------------------------------------------------------------------

    def _succeeding(self) -> object:
        return self._place.store.claims.succeed(self._claim, self._results)

    def _finish(self, end: Callable[[], object]) -> None:
        """The last write. What the state table refuses has been decided by others meanwhile: ask, and follow."""
        patience, claims = self._place.patience, self._place.store.claims
        patience.get("sending progress and log", self._heart.send_rest)
        try:
            patience.get(f"ending job {self._job.id}", end)
        except Conflict:
            beat = patience.get("asking for a job", lambda: claims.heartbeat(self._claim))
            if beat.cancel:
                patience.get("cancelling", lambda: claims.finish_cancelled(self._claim))
        except AcdcError as error:
            if isinstance(error, DatabaseError | StorageError):
                raise
            patience.get("failing a job", self._failing(error.job_code, error.message))
