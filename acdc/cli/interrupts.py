"""Ctrl-C before a command is at work: while Python still imports what it needs."""

from __future__ import annotations

import signal
import sys

seen = False  # some libraries turn KeyboardInterrupt into an error of their own


def _note(*_: object) -> None:
    global seen
    seen = True
    raise KeyboardInterrupt


def note() -> None:
    """From now on a Ctrl-C is remembered."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def end() -> None:
    """Where no command is there yet to say it."""
    sys.stderr.write("interrupted\n")
    sys.exit(130)
