"""The engine process: takes a job, computes, answers; then the next one, with its models still warm.

    python -m workers.child PARENT_PID ORDERS_FD MESSAGES_FD

Started by `workers.executor.EngineChild` only. Orders and messages (`workers.wire`) travel on two pipes of their own,
so that nothing that a library prints can be taken for one; stdout and stderr go to the job's log file, from the process
itself down to a crash in C. It never outlives its parent, and leaves SIGINT and SIGTERM to it: a terminal's Ctrl-C or a
service manager reaches every process at once, and only the parent knows whether to cancel or to drain.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from acdc.circuit import Circuit
from acdc.errors import AcdcError, Cancelled, OutOfMemory, StorageError, is_out_of_memory
from acdc.patch_map import PatchMap
from acdc.progress import Checkpoint, Progress
from acdc.settings import let_idle_threads_sleep, load_settings
from acdc.spec import JobSpec, parse_job
from workers.checkpoints import read_checkpoint, write_checkpoint
from workers.parent import die_with
from workers.wire import (
    Cancel,
    Done,
    Failed,
    Found,
    Log,
    Message,
    Phase,
    Resumed,
    Run,
    Saved,
    Step,
    Stopped,
    decode_order,
    encode,
)

if TYPE_CHECKING:
    from acdc.models.cache import ModelCache

_STEP_EVERY_S = 0.2
_SAVING_SHARE = 0.05  # of the time goes into writing checkpoints, at most
_FULL = {errno.ENOSPC, errno.EDQUOT}


class ResultLike(Protocol):
    """What a job gives back, see `acdc.pipeline.Result`."""

    @property
    def key(self) -> str: ...

    @property
    def circuit(self) -> Circuit | None: ...

    @property
    def patch_map(self) -> PatchMap | None: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


class Engine(Protocol):
    """Does a job: the pipeline with its models."""

    def __call__(self, spec: JobSpec, *, progress: Progress, source: Circuit | None) -> Iterable[ResultLike]: ...


def acdc_engine() -> Engine:
    """The real one. torch and transformers are imported here, for the first time."""
    from functools import partial

    models = engine_models()
    from acdc.pipeline import run_job

    return partial(run_job, models=models)


def engine_models() -> ModelCache:
    """The models of an engine process, and its threads, as the settings have them. To be called before anything imports
    torch."""
    let_idle_threads_sleep()
    import torch

    from acdc.models.allowed import AllowList
    from acdc.models.cache import ModelCache

    settings = load_settings()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return ModelCache(
        settings.cache_dir,
        quota_bytes=settings.model_quota_bytes,
        allowed=AllowList(settings.allowed_models, settings.allowed_dirs),
        device=settings.device,
    )


# -- the process -------------------------------------------------------------------------------------------------------


def main(make_engine: Callable[[], Engine] = acdc_engine, argv: list[str] | None = None) -> None:
    """Serve orders until their pipe ends."""
    parent, orders, messages = (int(word) for word in (argv or sys.argv[1:]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(parent)
    faulthandler.enable(file=2)
    _Child(os.fdopen(orders, "rb"), os.fdopen(messages, "wb", buffering=0), make_engine).serve()


class _Child:
    def __init__(self, orders: IO[bytes], messages: IO[bytes], make_engine: Callable[[], Engine]) -> None:
        self._orders = orders
        self._messages = messages
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._inbox: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        threading.Thread(target=self._listen, name="orders", daemon=True).start()
        while True:
            order = self._inbox.get()
            self._send(self._answer(order))
            self._cancelled.discard(order.run)

    def _listen(self) -> None:
        """Beside the computing, so that a cancel and the parent's end are noticed at once."""
        for line in self._orders:
            match decode_order(line):
                case Run() as order:
                    self._inbox.put(order)
                case Cancel(run=run):
                    self._cancelled.add(run)
        os._exit(0)  # the parent is gone or wants no more: nothing is left to say, and to nobody

    def _send(self, message: Message) -> None:
        try:
            self._messages.write(encode(message))
        except BrokenPipeError:
            os._exit(1)

    def _answer(self, order: Run) -> Message:
        """Do the job; how it ended. Every error ends here: this is the edge of the process."""
        with _output_to(Path(order.log)):
            try:
                self._work(order)
                answer: Message = Done(order.run)
            except Cancelled:
                answer = Stopped(order.run)
            except Exception as error:  # noqa: BLE001 - the edge of the process
                known = as_acdc_error(error)
                if known.code == "internal":
                    traceback.print_exc()
                answer = Failed.of(order.run, known)
        if isinstance(answer, Failed):
            _free_memory()
        return answer

    def _work(self, order: Run) -> None:
        spec = parse_job(order.spec)
        source = Circuit.load(Path(order.source)) if order.source else None
        progress = _ToParent(order, spec.sha256, self._send, lambda: order.run in self._cancelled)
        if self._engine is None:
            progress.phase("starting the engine", 0)
            self._engine = self._make_engine()
        scratch = Path(order.scratch)
        for number, result in enumerate(self._engine(spec, progress=progress, source=source)):
            self._send(_write_result(order.run, scratch / f"result-{number}", result))


def _write_result(run: int, stem: Path, result: ResultLike) -> Found:
    data = stem.with_suffix(".json")
    data.write_text(json.dumps(dict(result.data), allow_nan=False))
    files: dict[str, str] = {}
    for kind, found in (("circuit", result.circuit), ("map", result.patch_map)):
        if found is not None:
            files[kind] = str(stem.with_suffix(f".{kind}.safetensors"))
            found.save(Path(files[kind]))
    return Found(run, result.key, str(data), **files)


class _ToParent:
    """`Progress` over the pipe."""

    def __init__(
        self, order: Run, spec_sha256: str, send: Callable[[Message], None], is_cancelled: Callable[[], bool]
    ) -> None:
        self._order = order
        self._spec_sha256 = spec_sha256
        self._send = send
        self._is_cancelled = is_cancelled
        self._next_step = 0.0
        self._next_save = 0.0
        self._saved = 0

    def phase(self, name: str, total: int) -> None:
        self._stop_if_cancelled()
        self._send(Phase(self._order.run, name, total))
        self._next_step = 0.0

    def step(self, done: int, note: str = "") -> None:
        self._stop_if_cancelled()
        now = time.monotonic()
        if now >= self._next_step:
            self._next_step = now + _STEP_EVERY_S
            self._send(Step(self._order.run, done, note))

    def log(self, message: str) -> None:
        print(message, flush=True)  # noqa: T201 - stdout is the job's log
        self._send(Log(self._order.run, message))

    def save(self, checkpoint: Checkpoint) -> None:
        """Now, unless writing the last one was so dear that this one has to be skipped."""
        started = time.monotonic()
        if started < self._next_save:
            return
        self._saved += 1
        path = Path(self._order.scratch) / f"checkpoint-{self._saved}.safetensors"
        write_checkpoint(path, checkpoint, self._spec_sha256)
        took = time.monotonic() - started
        self._next_save = started + took / _SAVING_SHARE
        self._send(Saved(self._order.run, str(path), checkpoint.step))

    def resume(self) -> Checkpoint | None:
        if self._order.checkpoint is None:
            return None
        try:
            checkpoint = read_checkpoint(Path(self._order.checkpoint), self._spec_sha256)
        except ValueError as error:
            self.log(f"{error}: starting over")
            return None
        print(f"resumed from step {checkpoint.step}", flush=True)  # noqa: T201 - stdout is the job's log
        self._send(Resumed(self._order.run, checkpoint.step))
        return checkpoint

    def _stop_if_cancelled(self) -> None:
        if self._is_cancelled():
            raise Cancelled("the run was cancelled")


# -- errors and output -------------------------------------------------------------------------------------------------


def as_acdc_error(error: Exception) -> AcdcError:
    """An error of the tree for whatever came out of an engine; `internal` for what nobody foresaw."""
    if isinstance(error, AcdcError):
        return error
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0] or type(error).__name__
        return OutOfMemory(f"{first}; lower compute.batch_tokens or compute.memory_bytes, or take a smaller model")
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageError(f"no space left for {error.filename or 'the engine'}; free some and try again")
    return AcdcError("the engine failed in a way nobody foresaw; the end of the job's log has the traceback")


def _free_memory() -> None:
    """What a failed job held goes back to the device before the next one."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Everything printed goes to the file, also what C code prints."""
    kept = os.dup(1), os.dup(2)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for old, standard in zip(kept, (1, 2), strict=True):
            os.dup2(old, standard)
            os.close(old)
        os.close(file)


if __name__ == "__main__":
    main()
