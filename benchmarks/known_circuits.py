"""Every method on every model whose circuit is known: how near its ranking of edges comes to that circuit.

A method searches with the ablation that the circuit is known for. Methods with a random part run at several seeds. Over
the cases of a family, their ablations and the seeds the table gives the median, and the interval of that median when
cases are drawn again (bootstrap; all runs of a case stay together). The models are small, so that cases run beside each
other, each on one thread.

Prints the table and the figures; writes build/bench_truth.json. --cases and --methods take those whose names begin so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from figures import Figure, environment, write
from rich.progress import track

from acdc.discovery import METHODS
from acdc.discovery.ensemble import Member
from acdc.discovery.problem import Found, Problem
from acdc.evaluation.bootstrap import LEVEL, RESAMPLES, mean_interval
from acdc.evaluation.truth.cases import FAMILIES, MEMORY_BYTES, Case, case_named, cases, prompts_of
from acdc.evaluation.truth.exhaustive import Truth
from acdc.evaluation.truth.ranking import (
    at_heads,
    auroc,
    average_precision,
    mib_auroc,
    mib_circuits,
    size_matched_f1,
)
from acdc.graph import Graph, Number
from acdc.metrics import METRICS
from acdc.progress import Quiet

AP_WANTED, SIIT_AP_WANTED = 0.99, 0.95
SEARCHES = ("exact ", "acdc ")  # what truth-exact-ap-min is about
PUBLISHED_AUROC = 0.81
THRESHOLDS = tuple(10.0**exponent for exponent in np.arange(-9, 1.5, 0.5))
"""ACDC's: an edge's score is the largest it survives."""

NESTED = {"steps": 300, "rate": 0.05, "kl_weight": 1.0, "examples": 8}
PRUNING = {"edges": 0.15, "steps": 1000, "rate": 0.1, "penalty_rate": 0.1, "warm_start": None}
SEEDS = (0, 1, 2)
MOST_PROCESSES = 8
FEWEST_CASES = 5  # of a family, for an interval


@dataclass(frozen=True)
class Entry:
    """A method as it takes part. objective: what it searches by. seeded: the argument that takes a seed, if any."""

    method: str
    objective: str
    arguments: Mapping[str, object]
    seeded: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} ({self.objective})"

    def runs(self) -> list[dict[str, object]]:
        """The arguments of each of its runs."""
        return [{**self.arguments, self.seeded: seed} for seed in SEEDS] if self.seeded else [dict(self.arguments)]


MEMBERS = [
    Member("eap-ig-inputs", METHODS["eap-ig-inputs"], {"steps": 10}),
    Member("mask-ig", METHODS["mask-ig"], {"steps": 10}),
    Member("gim", METHODS["gim"], {"temperature": 2.0}),
]
"""Of the ensemble: those of its default."""

ENTRIES = (
    Entry("exact", "kl_divergence", {}),
    Entry("acdc", "kl_divergence", {"thresholds": THRESHOLDS, "rule": "signed"}),
    Entry("eap", "logit_diff", {}),
    Entry("eap-ig-inputs", "logit_diff", {"steps": 10}),
    Entry("eap-ig-inputs", "kl_divergence", {"steps": 10}),
    Entry("eap-ig-activations", "logit_diff", {"steps": 5}),
    Entry("eap-ig-activations", "kl_divergence", {"steps": 5}),
    Entry("mask-ig", "logit_diff", {"steps": 10}),
    Entry("mask-ig", "kl_divergence", {"steps": 10}),
    Entry("node-ap", "logit_diff", {}),
    Entry("node-ap-ig", "logit_diff", {"steps": 10}),
    Entry("relp", "logit_diff", {"attention": "gradient"}),
    Entry("gim", "logit_diff", {"temperature": 2.0}),
    Entry("eap-ig-qk", "logit_diff", {"steps": 10}),
    Entry("eap-ig-qk", "kl_divergence", {"steps": 10}),
    Entry("ensemble", "logit_diff", {"methods": MEMBERS, "ranks": "absolute", "consistency": None, "resample_seed": 0}),
    Entry("information-flow-routes", "logit_diff", {}),
    Entry("edge-pruning", "kl_divergence", PRUNING, seeded="mask_seed"),
    Entry("nested-pruning", "logit_diff", NESTED, seeded="draw_seed"),
    Entry("nested-pruning", "kl_divergence", NESTED, seeded="draw_seed"),
)


@dataclass(frozen=True)
class Row:
    """One run of a method on one case under one ablation.

    by_single_cuts: the average precision with counterweights counted as true, see acdc.evaluation.truth.exhaustive.
    seconds: processor time of the search, which other work on the machine does not lengthen.
    """

    case: str
    ablation: str
    method: str
    average_precision: float
    by_single_cuts: float
    auroc: float
    f1: float
    mib_auroc: float
    seconds: float

    @property
    def family(self) -> str:
        return self.case.partition("/")[0]

    @property
    def where(self) -> str:
        return f"{self.case} ({self.ablation})"


# -- running -----------------------------------------------------------------------------------------------------------


def rows_of(case_name: str, ablation: str, entries: Sequence[Entry]) -> list[Row]:
    case = case_named(case_name)
    with torch.no_grad():
        t = case.transformer()
        prompts = prompts_of(case, t, ablation)
    truth = case.truth(t.graph, ablation)
    rows = []
    for entry in entries:
        problem = Problem(t, prompts, METRICS[entry.objective], MEMORY_BYTES)
        for arguments in entry.runs():
            begin = time.process_time()
            found = METHODS[entry.method](problem, Quiet(), **arguments)[-1]
            rows.append(judged(case, ablation, entry, t.graph, found, truth, time.process_time() - begin))
    return rows


def judged(case: Case, ablation: str, entry: Entry, graph: Graph, found: Found, truth: Truth, seconds: float) -> Row:
    """Merit is |score|: that an edge matters, whichever way."""

    def seen(matrix: npt.NDArray[Number]) -> npt.NDArray[Number]:
        return at_heads(graph, matrix) if case.at_heads else matrix

    merit, scored = seen(np.abs(found.scores)), seen(graph.legal & ~truth.redundant)
    needed, of_model = seen(truth.true | truth.counterweights), seen(graph.legal & ~truth.stand_ins)
    ranked, true = merit[scored], seen(truth.true)[scored]
    circuits = [seen(circuit)[scored] for circuit in mib_circuits(graph, found.scores, found.tested)]
    return Row(
        case=case.name,
        ablation=ablation,
        method=entry.name,
        average_precision=average_precision(ranked, true),
        by_single_cuts=average_precision(merit[of_model], needed[of_model]),
        auroc=auroc(ranked, true),
        f1=size_matched_f1(ranked, true),
        mib_auroc=mib_auroc(circuits, true),
        seconds=seconds,
    )


def all_rows(runs: Sequence[tuple[str, str]], entries: Sequence[Entry], n_processes: int) -> list[Row]:
    """runs: the names of cases, each with an ablation."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = [pool.submit(rows_of, case_name, ablation, entries) for case_name, ablation in runs]
        for done in track(as_completed(started), "cases", len(started)):
            print(f"{done.result()[0].where}: done", flush=True)
    return [row for done in started for row in done.result()]


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """low, high: the bootstrap interval of the median; None where a family has too few cases for one."""

    median: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.median:.3f}{interval}"


@dataclass(frozen=True)
class Line:
    """A method on a family. runs: cases by their ablations by seeds. mean, lowest: average precision over all runs, and
    of the worst."""

    family: str
    method: str
    cases: int
    runs: int
    average_precision: Spread
    mean: float
    lowest: float
    auroc: Spread
    f1: Spread
    mib_auroc: Spread
    seconds: float

    def __str__(self) -> str:
        spreads = "".join(f"{spread!s:>21}" for spread in (self.average_precision, self.auroc, self.f1, self.mib_auroc))
        rest = f"{self.mean:>8.3f}{self.lowest:>8.3f}{self.seconds:>8.2f}"
        return f"{self.family:11}{self.method:36}{self.runs:>5}{spreads}{rest}"


HEAD = (
    f"{'family':11}{'method':36}{'runs':>5}{'AP':>21}{'AUROC':>21}{'F1':>21}{'MIB':>21}{'mean':>8}{'lowest':>8}{'s':>8}"
)


def table(rows: Sequence[Row]) -> list[Line]:
    lines = []
    for family in FAMILIES:
        for method in methods_of(rows):
            own = [row for row in rows if (row.family, row.method) == (family, method)]
            if own:
                lines.append(line_of(family, method, own))
    return lines


def methods_of(rows: Sequence[Row]) -> list[str]:
    return [*dict.fromkeys(row.method for row in rows)]


def line_of(family: str, method: str, rows: Sequence[Row]) -> Line:
    names = dict.fromkeys(row.case for row in rows)

    def spread(figure: str) -> Spread:
        return spread_of([[getattr(row, figure) for row in rows if row.case == name] for name in names])

    return Line(
        family=family,
        method=method,
        cases=len(names),
        runs=len(rows),
        average_precision=spread("average_precision"),
        mean=statistics.fmean(row.average_precision for row in rows),
        lowest=min(row.average_precision for row in rows),
        auroc=spread("auroc"),
        f1=spread("f1"),
        mib_auroc=spread("mib_auroc"),
        seconds=statistics.median(row.seconds for row in rows),
    )


def spread_of(by_case: Sequence[Sequence[float]]) -> Spread:
    """by_case: [case, run]."""
    values = np.array(by_case)
    median = float(np.median(values))
    if len(values) < FEWEST_CASES:
        return Spread(median, None, None)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    medians = np.median(values[drawn].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Spread(median, float(low), float(high))


# -- the figures -------------------------------------------------------------------------------------------------------


def exact_figures(rows: Sequence[Row]) -> list[Figure]:
    """How near `exact` and `acdc` come where the circuit is exact."""
    searched = [row for row in rows if row.family in ("hand-wired", "tracr") and row.method.startswith(SEARCHES)]
    if not searched:
        return []
    worst = min(row.average_precision for row in searched)
    worst_by_cuts = min(row.by_single_cuts for row in searched)
    runs = f"exact and acdc on {len(searched) // 2} circuits of hand-wired and compiled models, each at its ablation"
    how = f"{runs}; below {AP_WANTED}: {_below(searched, 'average_precision')}"
    how_by_cuts = (
        "the same where edges that the model needs only against another one count as true (they are not scored, see "
        f"docs/concepts/known-circuits.md); below {AP_WANTED}: {_below(searched, 'by_single_cuts')}"
    )
    return [
        Figure("truth-exact-ap-min", worst, "AP", AP_WANTED, "higher", 1, how),
        Figure("truth-exact-ap-min-by-single-cuts", worst_by_cuts, "AP", None, "higher", 1, how_by_cuts),
    ]


def _below(rows: Sequence[Row], figure: str) -> str:
    low = [(row, getattr(row, figure)) for row in rows if getattr(row, figure) < AP_WANTED]
    return ", ".join(f"{row.method} on {row.where} {value:.3f}" for row, value in low) or "none"


def trained_figures(rows: Sequence[Row]) -> list[Figure]:
    """The method that comes nearest on average where models were trained to have the circuit."""
    trained = [row for row in rows if row.family == "siit"]
    if not trained:
        return []
    of_method = {method: [row for row in trained if row.method == method] for method in methods_of(rows)}
    means = {method: statistics.fmean(row.average_precision for row in own) for method, own in of_method.items()}
    best = max(means.values())
    names = [method for method, mean in means.items() if mean == best]
    own = of_method[names[0]]
    interval = mean_interval(np.array([row.average_precision for row in own]), [row.case for row in own], seed=0)
    how = f"mean over {len(own)} SIIT models, [{interval.low:.3f}, {interval.high:.3f}] when they are drawn again; of "
    how_auroc = f"of {names[0]}; best published AUROC on InterpBench's models, by MIB's rule: {PUBLISHED_AUROC}"
    auroc_of_best = statistics.fmean(row.auroc for row in own)
    return [
        Figure("truth-siit-best-ap", best, "AP", SIIT_AP_WANTED, "higher", 1, how + ", ".join(names)),
        Figure("truth-siit-best-auroc", auroc_of_best, "AUROC", None, "higher", 1, how_auroc),
    ]


def averages(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Average precision of every method on every circuit, mean over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row.where, {}).setdefault(row.method, []).append(row.average_precision)
    return {
        where: {method: round(statistics.fmean(of), 4) for method, of in by_method.items()}
        for where, by_method in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[""], help="only those whose name begins with one of these")
    parser.add_argument("--methods", nargs="+", default=[""], help="only those whose name begins with one of these")
    parser.add_argument("--out", type=Path, default=Path("build/bench_truth.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entries = [entry for entry in ENTRIES if entry.name.startswith(tuple(arguments.methods))]
    chosen = [case for case in cases() if case.name.startswith(tuple(arguments.cases))]
    runs = [(case.name, ablation) for case in chosen for ablation in case.ablations]
    n_processes = min(os.cpu_count() or 1, MOST_PROCESSES, len(runs))
    rows = all_rows(runs, entries, n_processes)
    lines = table(rows)
    print("\n".join([HEAD, *map(str, lines)]))
    facts = environment(
        torch.device("cpu"),
        processes=n_processes,
        processor_minutes=round(sum(row.seconds for row in rows) / 60, 1),
        table=[asdict(line) for line in lines],
        average_precision=averages(rows),
    )
    write(arguments.out, [*exact_figures(rows), *trained_figures(rows)], facts)


if __name__ == "__main__":
    main()
