"""make bench-circuits: the circuit that exact search finds with 64 prompts, next to attribution's of the same size.

IOI on smollm2-135m-instruct-q4. A staged `acdc` search on 64 prompts (edges that 16 prompts leave open are decided on
all), then `eap-ig-inputs` on the same prompts, its ranking cut where as many edges are connected; both judged on the
same 64 held-out prompts of other templates. Prints a table, writes build/bench_circuits.json and both circuits beside
it. A search that was stopped goes on from its last receiver: run the command again. What other code found is not taken.

    python benchmarks/circuits.py [--threshold 0.01 ...] [--prompts 64] [--stages 16] [--corruption abc] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import SAY_EVERY_S, engine_hash, environment

from acdc.circuit import Circuit
from acdc.models.cache import ModelCache
from acdc.numerals import two_digits
from acdc.pipeline import run_job
from acdc.progress import Checkpoint, Quiet
from acdc.selection import rank
from acdc.settings import load_settings
from acdc.spec import parse_job, reference_of

MODEL = "smollm2-135m-instruct-q4"
JUDGED = {"f": "f", "KL share": "kl_share", "KL": "kl", "accuracy": "accuracy"}  # column and field of a report's point


class Watched(Quiet):
    """Says where a long search is, and keeps its checkpoint in a file."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint, self.total, self.said, self.begin = checkpoint, 0, 0.0, time.monotonic()

    def phase(self, name: str, total: int) -> None:
        self.total = total
        print(f"[{time.monotonic() - self.begin:7.1f} s] {name}", flush=True)

    def step(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.said > 2 * SAY_EVERY_S:
            self.said = now
            print(f"[{now - self.begin:7.1f} s]   {done:,} of {self.total:,} {note}", flush=True)

    def save(self, checkpoint: Checkpoint) -> None:
        partial = self.checkpoint.with_suffix(".partial.npz")
        facts = np.array(json.dumps({"step": checkpoint.step, "facts": checkpoint.facts}))
        arrays: dict[str, Any] = {"facts": facts, **checkpoint.arrays}
        np.savez(partial, **arrays)
        partial.replace(self.checkpoint)

    def resume(self) -> Checkpoint | None:
        if not self.checkpoint.exists():
            return None
        held = dict(np.load(self.checkpoint))
        said = json.loads(str(held.pop("facts")))
        return Checkpoint(said["step"], said["facts"], held)


def discover(models: ModelCache, spec: dict[str, Any], place: Path) -> list[Circuit]:
    """Every circuit of a job, from the files beside `place` if they are there already."""
    wanted = parse_job(spec)
    of = f"{wanted.sha256[:12]}.{engine_hash()}"
    done = place.with_suffix(".done.json")
    if done.exists() and (said := json.loads(done.read_text()))["of"] == of:
        return [Circuit.load(place.parent / name) for name in said["files"]]
    checkpoint = place.with_suffix(f".{of}.npz")
    results = run_job(wanted, models=models, progress=Watched(checkpoint))
    circuits = [result.circuit for result in results if result.circuit is not None]
    files = [f"{place.name}.{i}.acdc" for i in range(len(circuits))]
    for circuit, name in zip(circuits, files, strict=True):
        circuit.save(place.parent / name)
    done.write_text(json.dumps({"of": of, "files": files}))
    checkpoint.unlink(missing_ok=True)
    return circuits


def row(title: str, circuit: Circuit) -> dict[str, Any]:
    """The figures of a judged circuit, in sample and held out."""
    assert circuit.report is not None
    points = {point.split: point for point in circuit.report.kept}
    heads = [node for node in circuit.nodes() if node[0].isdigit()]
    return {
        "circuit": title,
        "edges": circuit.n_edges,
        **{
            f"{name} ({split})": getattr(point, field)
            for name, field in JUDGED.items()
            for split, point in points.items()
        },
        "heads": heads,
        "facts": dict(circuit.provenance.run.facts),
        "notes": list(circuit.provenance.run.notes),
    }


def of_equal_size(scored: Circuit, n_connected: int) -> int:
    """How many edges to ask a signed ranking for, so that about as many are connected."""
    ranking = rank(scored.graph, scored.scores, scored.tested, "signed")
    low, high = 1, scored.graph.n_edges
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if ranking.select(middle).mask.sum() >= n_connected else (middle + 1, high)
    return low


def table(rows: list[dict[str, Any]]) -> str:
    """In markdown. Figures of what the search did not see, in brackets of what it saw."""
    lines = ["| circuit | edges | heads | f | KL share | KL | accuracy |", "|---|" + "---:|" * 6]
    for one in rows:
        both = [f"{two_digits(one[f'{name} (held_out)'])} ({two_digits(one[f'{name} (search)'])})" for name in JUDGED]
        lines.append(f"| {one['circuit']} | {one['edges']:,} | {len(one['heads'])} | {' | '.join(both)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.01])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--stages", type=int, nargs="*", default=[16])
    parser.add_argument("--corruption", default="abc")
    parser.add_argument("--out", type=Path, default=Path("build/bench_circuits.json"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    settings = load_settings()
    models = ModelCache(settings.cache_dir)
    print(f"{reference_of(MODEL)}: {arguments.prompts} prompts to search, {arguments.held_out} held out")
    task = {
        "name": "ioi",
        "corruption": arguments.corruption,
        "prompts": arguments.prompts,
        "held_out": arguments.held_out,
    }
    few = {"grid": [0.01], "rules": ["signed"], "random_circuits": 10, "band_circuits": 0}
    base = {"model": MODEL, "task": task, "evaluation": few}
    method = {"name": "acdc", "thresholds": arguments.threshold, "stages": arguments.stages}
    place = arguments.out.with_name(f"{arguments.out.stem}_acdc")
    searched = [c for c in discover(models, {**base, "method": method}, place) if "threshold" in c.provenance.run.facts]
    rows = []
    for number, circuit in enumerate(searched):
        rows.append(row(f"acdc, threshold {circuit.provenance.run.facts['threshold']:g}, staged", circuit))
        objectives = ["kl_divergence"], ["logit_diff", "kl_divergence"]
        for objective in objectives:
            spec = {**base, "method": {"name": "eap-ig-inputs", "objective": objective}}
            name = f"{arguments.out.stem}_eap_ig_{len(objective)}"
            scored = discover(models, {**spec, "selection": {"size": 1000}}, arguments.out.with_name(name))[0]
            size = {"rule": "signed", "size": of_equal_size(scored, circuit.n_edges)}
            (same,) = discover(models, {**spec, "selection": size}, arguments.out.with_name(f"{name}_{number}"))
            rows.append(row(f"eap-ig-inputs on {' + '.join(objective)}", same))
    facts = environment(torch.device(searched[0].provenance.run.device))
    arguments.out.write_text(json.dumps({"environment": facts, "task": task, "circuits": rows}, indent=2) + "\n")
    print(table(rows))
    for one in rows:
        print(f"heads of {one['circuit']}: {' '.join(one['heads'])}")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
