"""Measure what one `acdc` search will take on this machine. What `acdc plan --measure` starts.

    python -m workers.rehearsal SPEC.json

stdout carries one JSON object a line: {"event": "phase", "name": "parity", "total": 1} while it works, and last either
{"event": "rehearsal", "edges": …, "seconds": …, "ms_per_edge": […], "memory_bytes": …, "prompts": …} or
{"event": "error", "code": …, "message": …, "faults": […]}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from acdc.progress import Quiet
from acdc.spec import DiscoverSpec, parse_job
from workers.child import as_acdc_error, engine_models


class _Phases(Quiet):
    def phase(self, name: str, total: int) -> None:
        _tell("phase", name=name, total=total)


def main(argv: list[str]) -> int:
    spec = parse_job(json.loads(Path(argv[0]).read_text()))
    assert isinstance(spec, DiscoverSpec)
    models = engine_models()
    from acdc.pipeline import rehearse

    try:
        rehearsal = rehearse(spec, models=models, progress=_Phases())
    except Exception as error:  # noqa: BLE001 - a process border: no traceback crosses it
        _tell("error", **as_acdc_error(error).to_dict())
        return 1
    _tell("rehearsal", **asdict(rehearsal))
    return 0


def _tell(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)  # noqa: T201 - stdout is the answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
