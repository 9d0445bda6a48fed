"""Measure what one `acdc` search will take on this machine. What `acdc plan --measure` starts.

    python -m workers.rehearsal SPEC.json

stdout carries one JSON object a line: {"event": "phase", "name": "parity", "total": 1} while it works, and last either
{"event": "rehearsal", "edges": …, "seconds": …, "ms_per_edge": […], "memory_bytes": …, "prompts": …} or
{"event": "error", "code": …, "message": …, "faults": […]}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from acdc.progress import Quiet
from acdc.spec import DiscoverSpec, parse_job
from workers.child import as_acdc_error, engine_models


class _Answers(Quiet):
    """Told to a stream, as they come."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def phase(self, name: str, total: int) -> None:
        self.tell("phase", name=name, total=total)

    def tell(self, event: str, **facts: object) -> None:
        self._stream.write(json.dumps({"event": event, **facts}) + "\n")
        self._stream.flush()


def main(argv: Sequence[str], stream: IO[str]) -> int:
    answers = _Answers(stream)
    try:
        spec = parse_job(json.loads(Path(argv[0]).read_text()))
        assert isinstance(spec, DiscoverSpec)
        models = engine_models()
        from acdc.pipeline import rehearse

        rehearsal = rehearse(spec, models=models, progress=answers)
    except Exception as error:  # noqa: BLE001 - a process border: no traceback crosses it
        answers.tell("error", **as_acdc_error(error).to_dict())
        return 1
    answers.tell("rehearsal", **asdict(rehearsal))
    return 0


if __name__ == "__main__":
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    sys.exit(main(sys.argv[1:], kept))
