"""Every method on every model whose circuit is known: how near its ranking of edges comes to that circuit.

Prints a table of medians over cases by family, with the spread, and the figures of the issue; writes
build/bench_truth.json. --cases and --methods take those whose name begins so.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from figures import Figure, environment, write

from acdc.discovery import METHODS
from acdc.discovery.problem import Found, Problem
from acdc.evaluation.truth.cases import FAMILIES, MEMORY_BYTES, Case, cases, prompts_of
from acdc.evaluation.truth.ranking import at_heads, auroc, average_precision, mib_auroc, size_matched_f1
from acdc.graph import BoolMatrix
from acdc.metrics import METRICS
from acdc.models.transformer import Transformer
from acdc.progress import Quiet

AP_WANTED, SIIT_AP_WANTED = 0.99, 0.95
THRESHOLDS = tuple(10.0**exponent for exponent in np.arange(-9, 1.5, 0.5))
"""ACDC's: an edge's score is the largest it survives."""

PRUNING = {"edges": 0.15, "steps": 400, "rate": 0.8, "penalty_rate": 0.8, "warm_start": None, "mask_seed": 0}


@dataclass(frozen=True)
class Entry:
    """A method as it takes part. objective: what it searches by."""

    method: str
    objective: str
    arguments: Mapping[str, object]

    @property
    def name(self) -> str:
        return f"{self.method} ({self.objective})"


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
    Entry("information-flow-routes", "logit_diff", {}),
    Entry("edge-pruning", "kl_divergence", PRUNING),
)


@dataclass(frozen=True)
class Row:
    """One method on one case under one ablation. chance: of the average precision. seconds: of the search."""

    case: str
    family: str
    ablation: str
    method: str
    auroc: float
    average_precision: float
    mib_auroc: float | None
    f1: float
    chance: float
    n_true: int
    n_scored: int
    seconds: float


def rows_of(case: Case, ablation: str, entries: Sequence[Entry]) -> list[Row]:
    with torch.no_grad():
        t = case.transformer()
        prompts = prompts_of(case, t, ablation)
    truth = case.truth(t.graph, ablation)
    rows = []
    for entry in entries:
        begin = time.perf_counter()
        problem = Problem(t, prompts, METRICS[entry.objective], MEMORY_BYTES)
        found = METHODS[entry.method](problem, Quiet(), **entry.arguments)[-1]
        seconds = time.perf_counter() - begin
        rows.append(judged(case, ablation, entry, t, found, truth.true, t.graph.legal & ~truth.redundant, seconds))
    return rows


def judged(
    case: Case,
    ablation: str,
    entry: Entry,
    t: Transformer,
    found: Found,
    true: BoolMatrix,
    scored: BoolMatrix,
    seconds: float,
) -> Row:
    """Merit is |score|: that an edge matters, whichever way."""
    merit = np.abs(found.scores)
    mib = None if case.at_heads else mib_auroc(t.graph, found.scores, found.tested, true, scored)
    if case.at_heads:
        merit, true, scored = at_heads(t.graph, merit), at_heads(t.graph, true), at_heads(t.graph, scored)
    is_true = true[scored]
    return Row(
        case=case.name,
        family=case.family,
        ablation=ablation,
        method=entry.name,
        auroc=auroc(merit[scored], is_true),
        average_precision=average_precision(merit[scored], is_true),
        mib_auroc=mib,
        f1=size_matched_f1(merit[scored], is_true),
        chance=float(is_true.mean()),
        n_true=int(is_true.sum()),
        n_scored=len(is_true),
        seconds=seconds,
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[str]:
    """Per family and method: medians over cases and ablations, with the lowest and the highest average precision."""
    lines = [
        f"{'family':12}{'method':38}{'cases':>6}{'AP':>8}{'from':>8}{'to':>8}{'AUROC':>8}{'F1':>8}{'MIB':>8}{'s':>8}"
    ]
    for family in FAMILIES:
        for method in dict.fromkeys(row.method for row in rows):
            own = [row for row in rows if (row.family, row.method) == (family, method)]
            if own:
                precisions = [row.average_precision for row in own]
                cells = [
                    statistics.median(precisions),
                    min(precisions),
                    max(precisions),
                    statistics.median(row.auroc for row in own),
                    statistics.median(row.f1 for row in own),
                    _median_of_known([row.mib_auroc for row in own]),
                    sum(row.seconds for row in own),
                ]
                lines.append(f"{family:12}{method:38}{len(own):>6}" + "".join(f"{cell:>8.3f}" for cell in cells))
    return lines


def _median_of_known(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def figures(rows: Sequence[Row]) -> list[Figure]:
    found = []
    searched = [r for r in rows if r.family in ("hand-wired", "tracr") and r.method.split()[0] in ("exact", "acdc")]
    if searched:
        worst = min(searched, key=lambda row: row.average_precision)
        below = [row for row in searched if row.average_precision < AP_WANTED]
        how = f"exact and acdc over {len(searched)} hand-wired and Tracr cases, each at its ablation; lowest: "
        how += f"{worst.method} on {worst.case} ({worst.ablation}); below {AP_WANTED}: " + (
            ", ".join(f"{row.method} on {row.case} ({row.ablation}) {row.average_precision:.3f}" for row in below)
            or "none"
        )
        found.append(Figure("truth-exact-ap-min", worst.average_precision, "AP", AP_WANTED, "higher", 1, how))
    trained = [row for row in rows if row.family == "siit"]
    if trained:
        by_method = {m: [row for row in trained if row.method == m] for m in dict.fromkeys(r.method for r in trained)}
        means = {method: statistics.fmean(row.average_precision for row in own) for method, own in by_method.items()}
        best = max(means, key=lambda method: means[method])
        beside = statistics.fmean(row.auroc for row in by_method[best])
        how = f"mean over {len(by_method[best])} SIIT models of {best}; AUROC {beside:.3f}"
        found.append(Figure("truth-siit-best-ap", means[best], "AP", SIIT_AP_WANTED, "higher", 1, how))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="only those whose name begins so")
    parser.add_argument("--methods", default="", help="only those whose name begins so")
    parser.add_argument("--out", type=Path, default=Path("build/bench_truth.json"))
    arguments = parser.parse_args()
    entries = [entry for entry in ENTRIES if entry.name.startswith(arguments.methods)]
    rows: list[Row] = []
    begin = time.perf_counter()
    for case in cases():
        if case.name.startswith(arguments.cases):
            for ablation in case.ablations:
                rows += rows_of(case, ablation, entries)
            print(f"{case.name}: done after {time.perf_counter() - begin:.0f} s", flush=True)
    print("\n".join(summary(rows)))
    write(arguments.out, figures(rows), environment(torch.device("cpu"), rows=[asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
