"""make bench-coverage: how often the interval of a circuit's stability contains the truth, on planted scores.

Prints a line for every planted truth (benchmarks/planted_scores.py) and a table, and writes build/bench_coverage.json.
Some ten minutes on two cores; what it prints depends on its seeds alone.

    python benchmarks/stability_coverage.py [--only "343 edges"] [--samples 100] [--workers 2] [--out FILE]

The truth is the expected Jaccard of two circuits of n // 2 units each: the mean over many pairs of independent samples.
For every sample of n units the split-half estimate and its interval are had as `acdc run` has them. Beside them stands
the plain percentile bootstrap: 2.5 and 97.5 % of the Jaccard of pairs of resamples, against what it is taken for, the
overlap of circuits of n units each.

Rows of the noise "rare" stand apart: there the sample may hold none of the prompts that have other edges, and no
interval from it can know of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from figures import Figure, environment, write
from planted_scores import Planted, jaccard

from acdc.evaluation.bootstrap import units_of
from acdc.evaluation.reselection import Reselection
from acdc.evaluation.split_half import split_half
from acdc.graph import Graph, GraphShape
from acdc.progress import Quiet

PAIRS = 2000  # of samples, for the truth
RESAMPLES = 100  # pairs of them
TINY, SMALL, MIDDLE, LARGE = (Graph(GraphShape(*shape)) for shape in ((1, 2, 1), (3, 2, 1), (4, 4, 2), (8, 6, 2)))


def planted() -> list[Planted]:
    """Every signal with every noise on one graph; then other numbers of prompts, graphs, sizes and rules."""
    signals = (("nothing", 0.0), ("cliff", 0.3), ("cliff", 0.8), ("power", 0.4), ("normal", 0.8))
    strong = (("cliff", 0.8), ("power", 0.4))
    of_all = [
        Planted(MIDDLE, 40, *signal, noise, 32 if noise == "groups" else 64)
        for signal in signals
        for noise in ("independent", "shared", "sizes", "groups")
    ]
    by_n = [
        Planted(MIDDLE, 40, *signal, noise, n)
        for signal in strong
        for noise, sizes in (("shared heavy", (32, 128, 256)), ("groups", (10, 16)))
        for n in sizes
    ]
    by_graph = [
        Planted(graph, size, *signal, noise, n)
        for graph, size, n, noise in (
            (TINY, 6, 32, "shared"),
            (SMALL, 40, 32, "shared"),
            (MIDDLE, 150, 32, "independent"),
            (LARGE, 300, 64, "independent"),
        )
        for signal in (("nothing", 0.0), ("cliff", 0.8), ("exponential", 0.2))
    ]
    by_rule = [Planted(MIDDLE, 40, *signal, "heavy", 64, rule) for rule in ("absolute", "greedy") for signal in strong]
    rare = [Planted(MIDDLE, 40, "cliff", 0.8, "rare", n) for n in (16, 32, 64)]
    return [*of_all, *by_n, *by_graph, *by_rule, *rare]


@dataclass(frozen=True)
class Row:
    """One planted truth. half, full: what circuits of n // 2 and of n units overlap by. estimate: mean split-half
    figure. covered: share of the samples whose interval contains `half`; above, below: whose interval lies there.
    width: its mean. low_below_full: share whose lower end is no more than `full`. bootstrap: mean of the resamples'
    Jaccard; the last two are of its percentile interval, against `full`."""

    name: str
    noise: str
    n_samples: int
    half: float
    full: float
    estimate: float
    covered: float
    above: float
    below: float
    width: float
    low_below_full: float
    bootstrap: float
    bootstrap_covered: float
    bootstrap_width: float

    def line(self) -> str:
        return (
            f"{self.name:64} {self.half:5.2f} {self.full:5.2f} {self.estimate:8.2f} {self.covered:8.3f} "
            f"{self.width:6.2f} {self.bootstrap:10.2f} {self.bootstrap_covered:8.3f} {self.bootstrap_width:6.2f}"
        )


HEAD = (
    f"{'planted':64} {'half':>5} {'full':>5} {'estimate':>8} {'covered':>8} {'width':>6} {'bootstrap':>10} "
    f"{'covered':>8} {'width':>6}"
)


def measure(one: Planted, samples: int, pairs: int = PAIRS) -> Row:
    """Draw `samples` samples and hold their intervals against the truth."""
    half, full = (one.expected_overlap(n, pairs, seed=3) for n in (one.n // 2, one.n))
    rng = np.random.default_rng(4)
    found = np.array([_of_sample(one, rng, seed) for seed in range(samples)])
    estimate, low, high, bootstrap, bootstrap_low, bootstrap_high = found.T
    return Row(
        name=one.name,
        noise=one.noise,
        n_samples=samples,
        half=half,
        full=full,
        estimate=float(estimate.mean()),
        covered=float(((low <= half) & (half <= high)).mean()),
        above=float((low > half).mean()),
        below=float((high < half).mean()),
        width=float((high - low).mean()),
        low_below_full=float((low <= full).mean()),
        bootstrap=float(bootstrap.mean()),
        bootstrap_covered=float(((bootstrap_low <= full) & (full <= bootstrap_high)).mean()),
        bootstrap_width=float((bootstrap_high - bootstrap_low).mean()),
    )


def _of_sample(one: Planted, rng: np.random.Generator, seed: int) -> tuple[float, ...]:
    """The split-half figure with its interval, and the mean and percentiles over pairs of resamples."""
    scores, groups = one.sample(one.n, rng)
    units = units_of(groups)
    reselection = Reselection(one.graph, scores, one.graph.legal, one.rule, one.asked_for)
    halves = split_half(reselection, units, seed, Quiet())
    assert halves is not None, one.name
    circuits = reselection.circuits(units.draw(2 * RESAMPLES, seed)[:, units.member_of])
    resampled = [jaccard(first, second) for first, second in zip(circuits, circuits, strict=True)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return halves.jaccard, halves.low, halves.high, float(np.mean(resampled)), float(low), float(high)


def figures(rows: Sequence[Row]) -> list[Figure]:
    known = [row for row in rows if row.noise != "rare"]
    runs = sum(row.n_samples for row in known)
    worst = min(known, key=lambda row: row.covered)
    bootstrap_worst = min(known, key=lambda row: row.bootstrap_covered)
    bias = max(known, key=lambda row: abs(row.estimate - row.half))

    def mean(field: str) -> float:
        return float(np.mean([getattr(row, field) for row in known]))

    def of_all(
        name: str, field: str, target: float | None, how: str, unit: str = "share", better: str = "higher"
    ) -> Figure:
        return Figure(name, mean(field), unit, target, better, runs, f"mean of {len(known)} planted truths; {how}")

    made = [
        of_all("coverage-mean", "covered", 0.95, "the interval contains the expected overlap at n // 2 units"),
        Figure("coverage-worst", worst.covered, "share", 0.9, "higher", worst.n_samples, worst.name),
        of_all("coverage-low-end", "low_below_full", 0.975, "its lower end is no more than the expected overlap at n"),
        of_all("coverage-width", "width", None, "of the interval", "jaccard", "lower"),
        Figure(
            "coverage-bias",
            abs(bias.estimate - bias.half),
            "jaccard",
            None,
            "lower",
            bias.n_samples,
            f"largest; {bias.name}",
        ),
        of_all("coverage-bootstrap-mean", "bootstrap_covered", None, "percentile bootstrap, the expected overlap at n"),
        Figure(
            "coverage-bootstrap-worst",
            bootstrap_worst.bootstrap_covered,
            "share",
            None,
            "higher",
            bootstrap_worst.n_samples,
            bootstrap_worst.name,
        ),
        of_all("coverage-bootstrap-width", "bootstrap_width", None, "of the percentile bootstrap", "jaccard", "lower"),
    ]
    made += [
        Figure(f"coverage-rare-{row.name.split()[-1]}", row.covered, "share", None, "higher", row.n_samples, row.name)
        for row in rows
        if row.noise == "rare"
    ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="planted truths whose name contains this")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("build/bench_coverage.json"))
    arguments = parser.parse_args()
    wanted = [one for one in planted() if arguments.only in one.name]
    print(HEAD, flush=True)
    rows = []
    with ProcessPoolExecutor(arguments.workers) as pool:
        for row in pool.map(measure, wanted, [arguments.samples] * len(wanted)):
            print(row.line(), flush=True)
            rows.append(row)
    facts = environment(torch.device("cpu"), samples=arguments.samples, rows=[asdict(row) for row in rows])
    write(arguments.out, figures(rows), facts)


if __name__ == "__main__":
    main()
