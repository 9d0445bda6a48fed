"""Starting and ending processes of our own: none outlives its owner, however that ends."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from acdc.cli import interrupts

_PR_SET_PDEATHSIG = 1
_KILL_WAIT_S = 5.0


def spawn(
    command: Sequence[str],
    *,
    stdout: int | IO[Any],
    stderr: int | IO[Any] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """`python -m command`, in a session of its own, so that a terminal's Ctrl-C reaches it only through us.

    On Linux it gets SIGTERM when the thread that called this ends, also by kill -9; elsewhere only an orderly end takes
    it along.
    """
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,
        preexec_fn=_terminate_with_parent(),
    )


def json_lines(stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """What a process tells, an object a line. One that is killed may leave half a line, which is left out."""
    for line in stream:
        if line.endswith(b"\n"):
            yield json.loads(line)


def stop(processes: Sequence[subprocess.Popen[Any]], grace_s: float) -> None:
    """SIGTERM to all; what still runs after the grace, or when we are interrupted again, is killed."""
    try:
        for process in processes:
            process.terminate()  # nothing happens to one that has ended
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait(_KILL_WAIT_S)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a `with` block as Ctrl-C does: with every `finally` on the way. In the main thread."""
    interrupts.raise_from_now_on()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent, number = ctypes.CDLL(None, use_errno=True).prctl, os.getpid(), int(signal.SIGTERM)

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask
