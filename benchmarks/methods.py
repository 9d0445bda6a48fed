"""make bench-methods: the scoreboard. Every method on real models and tasks, its ranking scored on other prompts.

A cell is a model and a task with its corruption. A method makes one ranking of the edges on the cell's searched
prompts; the faithfulness curve of circuits cut from it, by |score| and by signed score, is measured on held-out
prompts, which share no template with those, and none of the names (nouns, countries) that they are about. A method in a
cell is one process, so that its peak memory is its own, and one file under build/bench_methods: what was run stays, run
the command again to go on. One that takes longer than --minutes is told as not run. What was run with other code or
another request is not taken: a row is kept by the code of the method and all that circuits are run and judged with, and
by what was asked, defaults written out. What is stored under benchmarks/results counts as run.

    python benchmarks/methods.py [--models …] [--tasks …] [--methods …] [--prompts 64] [--minutes 90] [--table]

--table prints what there is and runs nothing. Prints a table a cell and the figures; writes build/bench_methods.json.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from figures import Figure, Lines, code_hash, environment, write

import acdc
from acdc.discovery import METHODS
from acdc.discovery.ensemble import midranks
from acdc.discovery.problem import Found
from acdc.evaluation.areas import areas_of
from acdc.evaluation.curve import Judge, curve, scale_on, sizes_of
from acdc.evaluation.k_star import meets
from acdc.evaluation.measuring import Ledger
from acdc.evaluation.outcomes import Floats
from acdc.evaluation.stability import stability_of
from acdc.from_spec import search_of, setting_of
from acdc.models.cache import ModelCache
from acdc.models.transformer import as_found
from acdc.progress import Progress
from acdc.report import Point
from acdc.selection import GRID, Ranking, rank, size_of
from acdc.setting import Setting, peak_memory_bytes
from acdc.settings import load_settings
from acdc.spec import DiscoverSpec, methods_in, parse_job, reference_of
from acdc.tasks.prompts import Pair, PromptSet, Tokens

MODELS = ("smollm2-135m-instruct-q4", "gemma3-270m-q4")
TASKS = (
    ("ioi", "abc"),
    ("ioi", "s2_io_flip"),
    ("greater_than", None),
    ("subject_verb_agreement", None),
    ("country_capital", None),
)
NAMES = {
    "ioi": ("IO", "S1"),
    "greater_than": ("noun",),
    "subject_verb_agreement": ("subject", "attractor"),
    "country_capital": ("country",),
}
"""The roles whose words the searched and the held-out prompts of a task do not share."""
DRAWN = 8  # times as many prompts as wanted: those with a name of the other half fall out
BASELINE = "eap-ig-inputs"
DEFAULT = "nested-pruning"  # what the documents recommend where faithfulness is the point
HELD_OUT = 64
SMALL = 0.01  # share of edges at which the KL share is told
STORED = Path(__file__).parent / "results" / "methods-cpu-2-cores.json"
# What decides the numbers beside the method itself; a change elsewhere leaves them as they are.
FILES = ("from_spec.py", "graph.py", "metrics.py", "prompting.py", "selection.py", "setting.py")
ROOMS = ("models", "patching", "tasks", *FILES)
ASKED = {"model", "task", "method", "metric", "ablation", "positions", "split_position", "compute"}

BOTH = ["logit_diff", "kl_divergence"]


@dataclass(frozen=True)
class Entry:
    """A method as it takes part. prompts: the first of the searched ones, where all would take too long; models: on
    which."""

    name: str
    method: Mapping[str, Any]
    prompts: int | None = None
    models: tuple[str, ...] = MODELS


ENTRIES = (
    Entry(BASELINE, {"name": "eap-ig-inputs"}),
    Entry("eap-ig-inputs, logit diff + KL", {"name": "eap-ig-inputs", "objective": BOTH}),
    Entry("eap", {"name": "eap"}),
    Entry("eap-ig-activations", {"name": "eap-ig-activations", "steps": 5}, prompts=16),
    Entry("eap-ig-qk", {"name": "eap-ig-qk"}),
    Entry("eap-ig-qk, logit diff + KL", {"name": "eap-ig-qk", "objective": BOTH}),
    Entry("mask-ig", {"name": "mask-ig"}),
    Entry("mask-ig, logit diff + KL", {"name": "mask-ig", "objective": BOTH}),
    Entry("relp", {"name": "relp"}),
    Entry("gim", {"name": "gim"}),
    Entry("node-ap", {"name": "node-ap"}),
    Entry("node-ap-ig", {"name": "node-ap-ig"}),
    Entry("information-flow-routes", {"name": "information-flow-routes"}),
    Entry("ensemble", {"name": "ensemble", "ranks": "absolute"}),
    Entry("edge-pruning", {"name": "edge-pruning"}),
    Entry("nested-pruning", {"name": "nested-pruning"}),
    Entry("nested-pruning, 600 steps", {"name": "nested-pruning", "steps": 600}),
    Entry("exact", {"name": "exact"}, prompts=16, models=("gemma3-270m-q4",)),
    # No ranking of all edges: what others are compared with, where exact takes too long.
    Entry("exact, 24 receivers", {"name": "exact", "receivers": 24}, prompts=16, models=("smollm2-135m-instruct-q4",)),
    Entry("acdc", {"name": "acdc", "thresholds": [1.0, 0.3, 0.1, 0.03, 0.01, 0.003], "rule": "absolute"}, prompts=8),
)


@dataclass(frozen=True)
class Cell:
    model: str
    task: str
    corruption: str | None

    @property
    def name(self) -> str:
        return f"{self.model} {self.task}" + (f" {self.corruption}" if self.corruption else "")


CELLS = tuple(Cell(model, task, corruption) for model in MODELS for task, corruption in TASKS)


@dataclass(frozen=True)
class Score:
    """One method in one cell. seconds: of all cores that the search had, which other work on the machine disturbs less
    than the clock's. Then, held out, areas by |score| (`cmd` to `kl_area`) and by signed score (`cpr`, `cpr_log`).
    k_star: connected edges of the smallest size of the grid, by either rule, that meets both conditions held out and on
    the searched prompts. jaccard: stability. exact_rho: rank correlation of |score| with that of `exact`, over the
    edges that it scored there. key: what decides the row.

    Fields are None where f is withheld, a method leaves edges without a rank, or gives no scores per example (jaccard).
    """

    n_prompts: int
    seconds: float
    peak_gb: float
    key: str
    cmd: float | None = None
    cmd_log: float | None = None
    cmd_guarded: float | None = None
    kl_area: float | None = None
    cpr: float | None = None
    cpr_log: float | None = None
    k_star: int | None = None
    kl_share_small: float | None = None
    jaccard: float | None = None
    exact_rho: float | None = None


def main() -> None:
    options = _options()
    if options.one:
        cell, entry = options.one
        _run_one(cell, entry, options.prompts)
        return
    cells = [cell for cell in CELLS if cell.model in options.models and cell.task in options.tasks]
    entries = [entry for entry in ENTRIES if entry.name in options.methods]
    jobs = [(cell, entry) for cell in cells for entry in entries if cell.model in entry.models]
    for number, (cell, entry) in enumerate(jobs, 1):
        if not options.table and _known(cell, entry, options.prompts) is None:
            print(f"[{number} of {len(jobs)}] {cell.name}: {entry.name}", flush=True)
            _run_apart(cell, entry, options)
    by_cell: dict[str, dict[str, Score | None]] = {cell.name: {} for cell in cells}
    for cell, entry in jobs:
        by_cell[cell.name][entry.name] = _known(cell, entry, options.prompts)
    for cell in cells:
        _print_cell(cell, by_cell[cell.name])
    facts = environment(torch.device("cpu"), prompts=options.prompts, held_out=HELD_OUT)
    as_data = {
        cell: {name: None if score is None else asdict(score) for name, score in rows.items()}
        for cell, rows in by_cell.items()
    }
    write(options.out, figures_of(by_cell), {**facts, "cells": as_data})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--tasks", nargs="+", default=[task for task, _ in TASKS], choices=[task for task, _ in TASKS])
    names = [entry.name for entry in ENTRIES]
    parser.add_argument(
        "--methods", nargs="+", default=names, choices=names, metavar="NAME", help=f"of: {'; '.join(names)}"
    )
    parser.add_argument("--prompts", type=int, default=64, help="searched on, unless a method says fewer")
    parser.add_argument("--minutes", type=float, default=90.0, help="a method in a cell, at most")
    parser.add_argument("--table", action="store_true", help="print what there is and run nothing")
    parser.add_argument("--out", type=Path, default=Path("build/bench_methods.json"))
    parser.add_argument("--one", nargs=2, metavar=("CELL", "METHOD"), help=argparse.SUPPRESS)
    return parser.parse_args()


# -- one method in one cell --------------------------------------------------------------------------------------------


def _file(cell: Cell, entry: Entry, prompts: int) -> Path:
    stem = "-".join("".join(c if c.isalnum() else " " for c in f"{cell.name} {entry.name}").split())
    return Path("build/bench_methods") / f"{stem}-{key_of(cell, entry, prompts)}.json"


def spec_of(cell: Cell, entry: Entry, prompts: int) -> DiscoverSpec:
    drawn = {"prompts": DRAWN * prompts, "held_out": DRAWN * HELD_OUT}
    task = {"name": cell.task, "corruption": cell.corruption, **drawn}
    spec = parse_job({"model": cell.model, "task": task, "method": dict(entry.method)})
    assert isinstance(spec, DiscoverSpec)
    return spec


def key_of(cell: Cell, entry: Entry, prompts: int) -> str:
    """A hash of all that decides a row: what is asked, and the code that answers."""
    spec = spec_of(cell, entry, prompts)
    asked = (spec.model_dump_json(include=ASKED), spec.objectives, entry.prompts or prompts, NAMES[cell.task], SMALL)
    names = frozenset({spec.method.name, *(part.name for part in methods_in(spec.method))})
    return hashlib.sha256(repr((asked, code_of(names))).encode()).hexdigest()[:12]


@functools.cache
def code_of(methods: frozenset[str]) -> str:
    """A hash of the code of methods and of what judges them: what this file takes of acdc.evaluation."""
    used = [METHODS[name].__module__ for name in methods] + _imported(Path(__file__))
    modules = frozenset[str]().union(*map(modules_of, used))
    return code_hash(lambda file: file.parts[0] in ROOMS or ".".join(("acdc", *file.with_suffix("").parts)) in modules)


@functools.cache
def modules_of(module: str) -> frozenset[str]:
    """A module of acdc.discovery or acdc.evaluation and those there that it imports, and so on."""
    source = Path(acdc.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return frozenset({module}).union(*map(modules_of, _imported(source)))


def _imported(source: Path) -> list[str]:
    return re.findall(r"^from (acdc\.(?:discovery|evaluation)\.\w+) import", source.read_text(), re.MULTILINE)


def _known(cell: Cell, entry: Entry, prompts: int) -> Score | None:
    """What was run, here or for what is stored, by the code as it is."""
    file = _file(cell, entry, prompts)
    if file.exists():
        return replace(Score(**json.loads(file.read_text())), exact_rho=_exact_rho(cell, entry, prompts))
    if (stored := _stored(cell, entry, prompts)) is None:
        return None
    exact = _exact_in(cell)
    of_this_exact = _stored(cell, exact, prompts) is not None and not _file(cell, exact, prompts).exists()
    return stored if of_this_exact else replace(stored, exact_rho=None)


def _stored(cell: Cell, entry: Entry, prompts: int) -> Score | None:
    cells = json.loads(STORED.read_text())["environment"]["cells"] if STORED.exists() else {}
    row = cells.get(cell.name, {}).get(entry.name)
    return Score(**row) if row is not None and row["key"] == key_of(cell, entry, prompts) else None


def _exact_in(cell: Cell) -> Entry:
    return next(one for one in ENTRIES if one.method["name"] == "exact" and cell.model in one.models)


def _exact_rho(cell: Cell, entry: Entry, prompts: int) -> float | None:
    """None where the scores of either are not here."""
    exact = _exact_in(cell)
    files = [_file(cell, one, prompts).with_suffix(".npz") for one in (entry, exact)]
    if entry == exact or not all(file.exists() for file in files):
        return None
    own, its = (np.load(file) for file in files)
    both = own["tested"] & its["tested"]
    return rank_correlation(abs(own["scores"][both]), abs(its["scores"][both]))


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's: the correlation of ranks, ties sharing their mean."""
    return float(np.corrcoef(midranks(a), midranks(b))[0, 1])


def _run_apart(cell: Cell, entry: Entry, options: argparse.Namespace) -> None:
    """In a process of its own. What fails or takes too long is told and leaves no file."""
    command = [sys.executable, __file__, "--one", cell.name, entry.name, "--prompts", str(options.prompts)]
    try:
        subprocess.run(command, check=True, timeout=60 * options.minutes)
    except subprocess.TimeoutExpired:
        print(f"not run: longer than {options.minutes:g} minutes", flush=True)
    except subprocess.CalledProcessError as error:
        print(f"not run: it ended with status {error.returncode}", flush=True)


def _run_one(cell_name: str, entry_name: str, prompts: int) -> None:
    cell = next(cell for cell in CELLS if cell.name == cell_name)
    entry = next(entry for entry in ENTRIES if entry.name == entry_name)
    out = _file(cell, entry, prompts)  # before the hours in which the code may change
    score, found = score_of(cell, entry, prompts)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out.with_suffix(".npz"), scores=found.scores, tested=found.tested)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(score)))
    partial.replace(out)


def score_of(cell: Cell, entry: Entry, prompts: int) -> tuple[Score, Found]:
    """Fewer prompts are fewer of the searched ones: the held-out ones are the same for all in a cell."""
    spec, key, n_prompts = spec_of(cell, entry, prompts), key_of(cell, entry, prompts), entry.prompts or prompts
    progress = Lines(entry.name)
    models = ModelCache(load_settings().cache_dir)
    loaded = models.load(reference_of(spec.model), dtype="float32", device="auto", progress=progress)
    with torch.inference_mode(False), as_found(loaded.model):
        setting = setting_of(loaded, spec, progress, change=lambda made: parted(made, NAMES[cell.task], n_prompts))
        graph = setting.t.graph
        begin = time.process_time()
        found = next(one for one in search_of(setting, spec, progress) if one.is_ranking)
        seconds, peak = time.process_time() - begin, peak_memory_bytes(setting.t.device)
        score = Score(n_prompts, seconds, peak / 1e9, key)
        if np.array_equal(found.tested, graph.legal):
            score = _judged(score, setting, spec.metric, found, progress)
    return score, found


def parted(made: PromptSet, roles: Sequence[str], n_prompts: int) -> PromptSet:
    """n_prompts searched and HELD_OUT held-out prompts that share none of the words at these roles. Raises ValueError
    where there are not enough."""
    names = sorted(set().union(*(_names(pair, roles) for pair in (*made.search, *made.held_out))))
    Random(0).shuffle(names)
    searched = set(names[: len(names) // 2])
    search = tuple(pair for pair in made.search if _names(pair, roles) <= searched)[:n_prompts]
    held_out = tuple(pair for pair in made.held_out if not _names(pair, roles) & searched)[:HELD_OUT]
    if len(search) < n_prompts or len(held_out) < HELD_OUT:
        raise ValueError(f"{len(search)} and {len(held_out)} prompts without a name in common; draw more than {DRAWN}×")
    return replace(made, search=search, held_out=held_out)


def _names(pair: Pair, roles: Sequence[str]) -> set[Tokens]:
    return {pair.clean[slice(*pair.roles[role])] for role in roles}


def _judged(score: Score, setting: Setting, metric: str, found: Found, progress: Progress) -> Score:
    """With the figures of the circuits cut from a ranking of all edges."""
    graph = setting.t.graph
    ledgers = {s.name: Ledger(s.split(setting.t, metric), progress) for s in (setting.held_out, setting.search)}
    judge = Judge(graph, ledgers, {name: scale_on(ledger, graph, 0) for name, ledger in ledgers.items()})
    rankings = {rule: rank(graph, found.scores, found.tested, rule) for rule in ("absolute", "signed")}
    only_held_out = replace(judge, ledgers={"held_out": ledgers["held_out"]})
    points = curve(only_held_out, list(rankings.values()), sizes_of(GRID, graph.n_edges))
    absolute, signed = (areas_of([p for p in points if p.rule == rule]) for rule in rankings)
    small = next(p for p in points if p.rule == "absolute" and p.fraction == SMALL)
    jaccard = None
    if found.per_example is not None:
        kept = rankings["absolute"].select(size_of(SMALL, graph.n_edges))
        groups = [pair.group for pair in setting.search.pairs]
        stability, _ = stability_of(graph, found.per_example, found.tested, groups, kept, 0, progress)
        jaccard = stability.jaccard
    return replace(
        score,
        cmd=absolute.cmd,
        cmd_log=absolute.cmd_log,
        cmd_guarded=absolute.cmd_guarded,
        kl_area=absolute.kl_area,
        cpr=signed.cpr,
        cpr_log=signed.cpr_log,
        k_star=_smallest(judge, rankings, points),
        kl_share_small=small.kl_share,
        jaccard=jaccard,
    )


def _smallest(judge: Judge, rankings: Mapping[str, Ranking], points: Sequence[Point]) -> int | None:
    """Connected edges of the smallest circuit that meets both conditions on both splits. points: held out. None where
    there is none."""
    for point in sorted(points, key=lambda p: p.connected):
        kept = rankings[point.rule].select(size_of(point.fraction, judge.graph.n_edges))
        if meets(point) and meets(judge.point("search", kept, point.fraction)):
            return point.connected
    return None


# -- what all of them say ----------------------------------------------------------------------------------------------


def _print_cell(cell: Cell, scores: Mapping[str, Score | None]) -> None:
    columns = (
        "CMD guarded",
        "CMD",
        "CMD log",
        "CPR",
        "CPR log",
        "KL area",
        "k*",
        "KL at 1 %",
        "Jaccard",
        "exact rho",
        "CPU s",
        "GB",
    )
    print(f"\n{cell.name}, {HELD_OUT} held-out prompts\n{'method':32}" + "".join(f"{c:>12}" for c in columns))
    for name, s in scores.items():
        if s is None:
            print(f"{name:32}     not run")
            continue
        values = (
            *(s.cmd_guarded, s.cmd, s.cmd_log, s.cpr, s.cpr_log, s.kl_area),
            *(s.k_star, s.kl_share_small, s.jaccard, s.exact_rho, s.seconds, s.peak_gb),
        )
        print(f"{name:32}" + "".join(f"{_number(value):>12}" for value in values))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def figures_of(by_cell: Mapping[str, Mapping[str, Score | None]]) -> list[Figure]:
    """Over the cells in which the baseline was run beside another; of the default, those in which it was run beside at
    least two, since the best of itself and the baseline says little."""
    ratios, gaps, costs = [], [], []
    for cell, rows_of in by_cell.items():
        scores = {name: score for name, score in rows_of.items() if score is not None}
        known = {n: s.cmd_guarded for n, s in scores.items() if s.cmd_guarded is not None}
        others = {name: value for name, value in known.items() if name != BASELINE}
        among = f"of the {len(known)} of {len(rows_of)} methods run there"
        if BASELINE in known and others:
            best = min(others, key=lambda name: others[name])
            ratios.append((others[best] / known[BASELINE], f"{cell}, {best} {among}"))
        if DEFAULT in known and len(known) > 2:
            best = min(known, key=lambda name: known[name])
            gaps.append((known[DEFAULT] - known[best], f"{cell}, {best} {among}"))
            costs.append((scores[DEFAULT].seconds / scores[best].seconds, f"{cell}, {best} {among}"))
    found = []
    for name, rows, target, unit, what in (
        ("cmd-best-over-eap-ig-worst-cell", ratios, 0.5, "of EAP-IG's", "best other method's guarded CMD, held out"),
        ("cmd-default-gap", gaps, 0.02, "CMD", f"guarded CMD of {DEFAULT} above the best"),
        ("cost-default-over-best", costs, 0.1, "of its time", f"CPU time of {DEFAULT} over that of the best"),
    ):
        if rows:
            value, where = max(rows)
            how = f"{what}; worst of {len(rows)} of {len(by_cell)} cells: {where}"
            found.append(Figure(name, value, unit, target, "lower", len(rows), how))
    if ratios:
        middle, how = statistics.median(ratio for ratio, _ in ratios), "the same, in the middle of the cells"
        found.append(Figure("cmd-best-over-eap-ig-median", middle, "of EAP-IG's", None, "lower", len(ratios), how))
    return found


if __name__ == "__main__":
    main()
