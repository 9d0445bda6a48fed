"""Ctrl-C while a command still imports what it needs: there is nothing to clean up yet, and an exception could be lost
in whatever is being imported, or come out of it as another one."""

from __future__ import annotations

import os
import signal


def end_at_once() -> None:
    """From now on; not where SIGINT is ignored, as in a shell's background jobs."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_from_now_on() -> None:
    """KeyboardInterrupt again: there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
