"""Circuits and reports to draw: random but connected, of any graph shape, without a model."""

from __future__ import annotations

import numpy as np

from acdc.circuit import Choices, Circuit, ModelCard, Provenance, Run, Selected, TaskCard
from acdc.graph import Graph, GraphShape
from acdc.report import Areas, Band, Behaviour, KStar, Point, Report

SMOLLM2 = GraphShape(30, 9, 3)
GPT2 = GraphShape(12, 12, 12)
TOY = GraphShape(2, 8, 8, has_mlp=False)
PARALLEL = GraphShape(4, 4, 4, is_parallel=True)
SPLIT = GraphShape(3, 4, 2, split_position=True)
BY_ROLE = GPT2.split_by(("IO", "S1", "S2"))
GEMMA_BY_ROLE = GraphShape(18, 4, 1, heads_share_norm=True).split_by(("IO", "S1", "S2"))
PARALLEL_BY_ROLE = PARALLEL.split_by(("a subject with quite a long name",))
SPLIT_BY_ROLE = SPLIT.split_by(("first",))
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def make_provenance(title: str = "SmolLM2-135M-Instruct, Q4_1") -> Provenance:
    return Provenance(
        model=ModelCard(
            "smollm2-135m-instruct-q4", title, "llama", "f" * 64, "t" * 64, 134_515_008, "Q4_1", "instruct"
        ),
        task=TaskCard("ioi", "abc", "a" * 64, 128, 64, 0, 0, ("t0", "t1"), ("t2",), ("S2", "IO", "end")),
        choices=Choices("logit_diff", "kl_divergence", "resample", "eap-ig-inputs", {"steps": 10}),
        run=Run("0.1.0", 1, "2.13", "5.23", "float32", "cpu", 2, 0, 12.0, 2**30),
    )


def make_circuit(
    shape: GraphShape,
    n_edges: int,
    *,
    seed: int = 0,
    title: str = "SmolLM2-135M-Instruct",
    report: Report | None = None,
) -> Circuit:
    """About `n_edges` connected edges: heavy-tailed scores, a few hub nodes, both signs."""
    graph = Graph(shape)
    rng = np.random.default_rng(seed)
    hubs = rng.pareto(1.2, graph.n_senders) + 0.1
    wants = rng.pareto(1.2, graph.n_receivers) + 0.1
    hubs[: graph.n_inputs] *= 6
    wants[-1] *= 12
    scores = rng.standard_t(3, graph.legal.shape) * hubs[:, None] * wants[None, :] * graph.legal * 0.01
    scores = scores.astype(np.float32)
    kept = np.zeros_like(graph.legal)
    if n_edges:
        order = np.argsort(-np.abs(scores), axis=None, kind="stable")
        low, high = 1, graph.n_edges
        while low < high:  # the smallest cut with so many connected edges
            middle = (low + high) // 2
            mask = np.zeros(scores.size, dtype=bool)
            mask[order[:middle]] = True
            kept = graph.connected(mask.reshape(scores.shape))
            low, high = (middle + 1, high) if kept.sum() < n_edges else (low, middle)
        mask = np.zeros(scores.size, dtype=bool)
        mask[order[:low]] = True
        kept = graph.connected(mask.reshape(scores.shape))
    selected = Selected("signed", max(n_edges, 1), int(kept.sum()))
    return Circuit(graph, scores, graph.legal.copy(), kept, selected, make_provenance(title), report)


def make_point(
    split: str, rule: str, fraction: float, f: float | None, kl_share: float | None, n_edges: int = 70_651
) -> Point:
    asked = max(1, round(fraction * n_edges))
    return Point(split, rule, fraction, asked, asked, 1.0, f, 0.1, kl_share, 0.9, (0.0, 0.5, 1.0, 1.5, 2.0))


def make_report(
    *, grid: tuple[float, ...] = GRID, rules: tuple[str, ...] = ("signed", "absolute"), met: bool = True
) -> Report:
    """Smooth curves with noise; `absolute` lags behind, held out lies below in sample."""
    rng = np.random.default_rng(1)
    points, bands = [], []
    for rule in rules:
        for fraction in grid:
            x = np.log10(fraction) + (3.0 if rule == "signed" else 2.4)
            for split, lag in (("search", 0.0), ("held_out", 0.25)):
                f = float(1 / (1 + np.exp(-4 * (x - lag - 0.6))) + 0.05 * rng.standard_normal())
                kl_share = float(1.1 - 1.1 / (1 + np.exp(-3 * (x - lag - 0.9))))
                points.append(make_point(split, rule, fraction, f, kl_share))
            noise = rng.normal(0.5 * max(0.0, x - 1.5), 0.06, 20)
            bands.append(Band(rule, fraction, 10, 20, tuple(map(float, noise)), tuple(map(float, 1 - noise / 2))))
    star = next(p for p in points if (p.split, p.rule) == ("held_out", rules[0]) and p.fraction >= min(0.01, max(grid)))
    return Report(
        behaviour=Behaviour("shown", 3.1, -1.2, (4.0, 4.6), 0.98, 0.5, 64),
        metric_full={"search": 3.2, "held_out": 3.1},
        metric_empty={"search": -1.1, "held_out": -1.2},
        kl_empty={"search": 2.0, "held_out": 2.1},
        points=tuple(points),
        areas=tuple(Areas("held_out", rule, 0.93, 0.08, 0.55, 0.47) for rule in rules),
        bands=tuple(bands),
        k_star=KStar(met, star, () if met else (star,)),
        kept=(star,),
    )
