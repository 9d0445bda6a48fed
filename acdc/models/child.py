"""Work that is better done in a child process: killable, with its own memory, and harmless when it crashes.

A child ends when its parent does, however that ended: it holds the reading end of a pipe that the parent never writes
to, and leaves when that pipe is closed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from acdc.errors import (
    AcdcError,
    BadWeights,
    Forbidden,
    OutOfMemory,
    ServiceError,
    StorageError,
    UnknownModel,
    UnsupportedModel,
)
from acdc.models.inventory import directory_bytes
from acdc.progress import Progress

POLL_S = 0.2
REFUSED = 3  # exit status of a child that says on its output which of our errors it met
MB = 10**6
_BY_CODE: dict[str, type[AcdcError]] = {
    error.code: error
    for error in (BadWeights, Forbidden, OutOfMemory, ServiceError, StorageError, UnknownModel, UnsupportedModel)
}
# The parent's import path, so that the child finds this package wherever the parent found it.
_LAUNCHER = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); module = sys.argv[2]; del sys.argv[1:3]; "
_LAUNCHER += "runpy.run_module(module, run_name='__main__', alter_sys=True)"


class ChildError(Exception):
    """A child ended without saying why. `output`: the last lines that it wrote."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(f"exit status {status}: {output}")
        self.status = status
        self.output = output

    @property
    def reason(self) -> str:
        """The last line alone: of a traceback, what was raised."""
        return self.output.splitlines()[-1] if self.output else f"exit status {self.status}"


def run_child(
    module: str, arguments: Sequence[str], *, progress: Progress, phase: str, watched: Path, total_bytes: int
) -> None:
    """Run `python -m module arguments` and report how `watched` grows, in megabytes.

    Raises the AcdcError that the child raised; ChildError; whatever `progress` raises, once the child is dead.
    """
    progress.phase(phase, total_bytes // MB)
    command = [sys.executable, "-c", _LAUNCHER, json.dumps(sys.path), module, *arguments]
    before = directory_bytes(watched)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=errors)
        try:
            while (status := _wait(process)) is None:
                done = min(directory_bytes(watched) - before, total_bytes)
                progress.step(max(done, 0) // MB, f"{max(done, 0) // MB} of {total_bytes // MB} MB")
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        if status == REFUSED:
            refusal = json.loads(_tail(output))
            raise _BY_CODE[refusal["code"]](refusal["message"])
        if status:
            raise ChildError(status, _tail(errors) or _tail(output))
    progress.step(total_bytes // MB)


def work_as_child(work: Callable[[Sequence[str]], None]) -> None:
    """The main function of a child: `work` gets its arguments."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        work(sys.argv[1:])
    except AcdcError as error:
        sys.stdout.write("\n" + json.dumps({"code": error.code, "message": error.message}))
        sys.stdout.flush()
        sys.exit(REFUSED)


def _leave_with_parent() -> None:
    # The raw descriptor: a thread that waits inside sys.stdin would hold its lock when the interpreter shuts down.
    os.read(0, 1)
    os._exit(1)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return None


def _tail(stream: IO[bytes]) -> str:
    """The last line, or the last few of a traceback."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 4000))
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines and lines[-1].startswith("{") else "\n".join(lines[-5:])
