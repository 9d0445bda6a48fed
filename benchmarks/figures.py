"""What all benchmarks share: a figure, the file and the table they end in, the IOI prompts, lines while one waits."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

import acdc
from acdc.progress import Quiet
from acdc.tasks import TASKS
from acdc.tasks.prompts import Pair

SAY_EVERY_S = 5.0


@dataclass(frozen=True)
class Figure:
    """One row. target None: a figure that stands beside another. direction: higher or lower is better."""

    name: str
    value: float
    unit: str
    target: float | None
    direction: str
    runs: int
    how: str

    def line(self) -> str:
        sign = ">=" if self.direction == "higher" else "<="
        is_met = self.target is None or (
            self.value >= self.target if self.direction == "higher" else self.value <= self.target
        )
        aim = "no target" if self.target is None else f"target {sign} {self.target:<5g}"
        met = "" if self.target is None else "met" if is_met else "MISSED"
        return f"{self.name:36} {self.value:>9.4g} {self.unit:<18} {aim:<15} {met:<7}  {self.how}"


def clocks() -> npt.NDArray[np.float64]:
    """Seconds now: of the clock, and of all cores that this process had, which other work disturbs less. What was asked
    of a GPU is waited for. [2]"""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def environment(device: torch.device, **more: object) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "engine": engine_hash(),
        **more,
    }


AROUND_THE_ENGINE = ("api", "cli", "drawing", "store", "web")


def engine_hash() -> str:
    """Of the engine's code: what other code found or took is not kept with what this one does."""
    return code_hash(lambda file: file.parts[0] not in AROUND_THE_ENGINE)


def code_hash(counts: Callable[[Path], bool]) -> str:
    """Of the package's files, named from its root, that count; comments and docstrings do not."""
    digest = hashlib.sha256()
    root = Path(acdc.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if counts(file.relative_to(root)):
            digest.update(_what_runs(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def _what_runs(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)


def write(out: Path, figures: Sequence[Figure], facts: Mapping[str, object], *, into: bool = False) -> None:
    """Print the table and write the file. into: keep the rows and facts of other parts that the file holds already."""
    old: dict[str, Any] = json.loads(out.read_text()) if into and out.exists() else {"environment": {}, "figures": []}
    names = {figure.name for figure in figures}
    rows = [row for row in old["figures"] if row["name"] not in names]
    rows += [{**asdict(figure), "value": float(f"{figure.value:.4g}")} for figure in figures]
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {"environment": {**old["environment"], **facts}, "figures": rows}
    out.write_text(json.dumps(done, indent=2) + "\n")
    for figure in figures:
        print(figure.line())
    print(f"written to {out}", flush=True)


def ioi_of_one_length(tokenizer: Any, n: int) -> list[Pair]:
    """IOI prompts of one length, so that all sides take them as one batch and positions mean the same in all."""
    made = TASKS["ioi"].build(tokenizer, n_search=16 * n, n_held_out=16, corruption=TASKS["ioi"].corruptions[0], seed=0)
    by_length: dict[int, list[Pair]] = {}
    for pair in made.search:
        by_length.setdefault(len(pair.clean), []).append(pair)
        if len(by_length[len(pair.clean)]) == n:
            return by_length[len(pair.clean)]
    raise SystemExit(f"no {n} IOI prompts of one length among {len(made.search)}")


class Lines(Quiet):
    """Progress as a line every few seconds."""

    def __init__(self, what: str) -> None:
        self.what, self.total, self._said = what, 0, 0.0

    def phase(self, name: str, total: int) -> None:
        self.total = total

    def step(self, done: int, note: str = "") -> None:
        if time.monotonic() - self._said >= SAY_EVERY_S:
            self._said = time.monotonic()
            of = f" of {self.total}" if self.total else ""
            print(f"{self.what}: {done}{of} {note}", flush=True)
