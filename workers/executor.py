"""The owner's side of an engine process: start it, give it a job, hear from it, stop it. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.wire import Cancel, Done, Failed, Message, Run, Stopped, decode_message, encode

ENGINE = (sys.executable, "-u", "-m", "workers.child")  # -u: a crash loses nothing that was printed
_GONE_WITHIN_S = 5.0


@dataclass(frozen=True)
class Died:
    """The process ended without an answer. reason: for people."""

    reason: str


Heard = Message | Died


class EngineChild:
    """One engine process, restarted when it is needed and not there. One run at a time.

    Start runs from a thread that lives as long as the process shall (see `workers.parent`); `cancel` and `kill` may be
    called from any. command: the program, which gets its parent's pid and two descriptors as further arguments.
    grace_s: between asking a run to stop and killing the process.
    """

    def __init__(self, *, grace_s: float, command: Sequence[str] = ENGINE) -> None:
        self._command = tuple(command)
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders = -1
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._run = 0
        self._is_running = False
        self._killer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """Of the process now there."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def begin(
        self,
        spec: Mapping[str, Any],
        *,
        scratch: Path,
        log: Path,
        source: Path | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Start a run; see `workers.wire.Run`. Then call `hear` until the run is over."""
        assert not self._is_running, "one run at a time"
        if self.pid is None:
            self._start()
        with self._lock:
            self._run += 1
            self._is_running = True
        order = Run(self._run, spec, str(scratch), str(log), _text(source), _text(checkpoint))
        self._send(encode(order))

    def hear(self, timeout_s: float | None = None) -> Heard | None:
        """The run's next message; None when there was none in time. Done, Stopped, Failed or Died is the last."""
        try:
            heard = self._heard.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if not isinstance(heard, Died) and heard.run != self._run:
            return None  # a late word of another run
        if isinstance(heard, Done | Stopped | Failed | Died):
            self._end_run()
        return heard

    def cancel(self) -> None:
        """Ask the run to stop, and kill the process if that takes longer than the grace."""
        with self._lock:
            if not self._is_running or self._killer is not None:
                return
            self._killer = threading.Timer(self._grace_s, self.kill)
            self._killer.daemon = True
            self._killer.start()
            self._send(encode(Cancel(self._run)))

    def kill(self) -> None:
        """End the run now, and with it the process and all that it started. A process that waits for work is spared."""
        with self._lock:
            if self._is_running:
                self._kill_process()

    def _kill_process(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process; it takes no grace, since nothing of it is wanted any more."""
        self._kill_process()
        if self._process is not None:
            self._process.wait()
            self._drop_process()
        self._end_run()

    def _end_run(self) -> None:
        with self._lock:
            self._is_running = False
            if self._killer is not None:
                self._killer.cancel()
                self._killer = None

    def _start(self) -> None:
        self._drop_process()
        orders_in, self._orders = os.pipe()
        messages_out, messages_in = os.pipe()
        self._process = subprocess.Popen(
            [*self._command, str(os.getpid()), str(orders_in), str(messages_in)],
            pass_fds=(orders_in, messages_in),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is its owner's to answer; and so `kill` reaches its children
        )
        os.close(orders_in)
        os.close(messages_in)
        self._heard = queue.SimpleQueue()
        reader = threading.Thread(
            target=_pass_on, args=(messages_out, self._process, self._heard), name="engine messages", daemon=True
        )
        reader.start()

    def _send(self, line: bytes) -> None:
        """An order to a process that is no more is lost: its end is told by `hear`."""
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._orders, view) :]
        except BrokenPipeError:
            pass

    def _drop_process(self) -> None:
        if self._process is not None:
            os.close(self._orders)
            self._process = None


def _pass_on(messages: int, process: subprocess.Popen[bytes], heard: queue.SimpleQueue[Heard]) -> None:
    """Everything that the process says, then its end."""
    with os.fdopen(messages, "rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):  # a killed process may leave half a line
                heard.put(decode_message(line))
    try:
        process.wait(_GONE_WITHIN_S)
    except subprocess.TimeoutExpired:  # it closed its pipe and stays: it is of no more use
        process.kill()
        process.wait()
    heard.put(Died(_reason(process.returncode)))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _reason(status: int) -> str:
    if status >= 0:
        return f"it ended with status {status}"
    name = signal.Signals(-status).name
    hint = ", often for want of memory" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
