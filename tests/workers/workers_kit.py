"""What the tests of this folder share: specs for the counting engine, waiting with a deadline."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import json

HERE = Path(__file__).parent
ENGINE = (sys.executable, "-u", str(HERE / "engine_for_tests.py"))
WITHIN_S = 30.0

Found = TypeVar("Found")


def counting(**play: Any) -> dict[str, Any]:
    return {"task": "ioi", "notes": json.dumps(play)}


def until(what: str, look: Callable[[], Found], within_s: float = WITHIN_S) -> Found:
    """What `look` gives, once that is true."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.01)
    return found


def marks(directory: Path, pattern: str) -> list[int]:
    """Pids of the engine processes that left such marks."""
    return [int(path.suffix[1:]) for path in directory.glob(pattern)]
