"""Completeness: is anything of the behaviour left outside the circuit (Wang et al. 2022, arXiv 2211.00593)?

The complement cuts the circuit out of the model: its f is near 0 where the circuit is all there is. A stricter question
is asked with sets K of the circuit's heads and MLPs, cut from the circuit and from the model together: a complete
circuit changes as the model does, so |f(C \\ K) - f(M \\ K)| is small for every K. Sets are drawn three ways, as none
finds all faults: at random (each node with probability 1/2), every layer's nodes jointly (backups often stand beside
what they back up), and greedily (the node that widens the gap most, of a few drawn, is added step by step).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acdc.evaluation.curve import Judge
from acdc.evaluation.editing import complement
from acdc.graph import BoolMatrix, Graph
from acdc.progress import Progress
from acdc.report import Completeness, KnockOut
from acdc.selection import Kept

GREEDY_STEPS, GREEDY_CANDIDATES = 5, 5


def n_circuits(graph: Graph, n_sets: int) -> int:
    """Circuits that `completeness_of` measures, at most."""
    sets = n_sets + graph.shape.n_layers + GREEDY_STEPS * GREEDY_CANDIDATES if n_sets else 0
    return 1 + 2 * sets


def completeness_of(
    judge: Judge, kept: Kept, n_sets: int, rng: np.random.Generator, progress: Progress
) -> Completeness:
    """On held-out prompts. n_sets: random sets; 0 leaves it at the complement. Raises Cancelled."""
    progress.phase("completeness", n_circuits(judge.graph, n_sets))
    rest = Kept.of(judge.graph, complement(judge.graph, kept.mask), "complement")
    point = judge.point("held_out", rest, rest.selected.asked_for / judge.graph.n_edges)
    nodes = _nodes(judge.graph, kept.mask)
    if not n_sets or not nodes:
        return Completeness(point, ())
    sets = [("random", [node for node in nodes if rng.random() < 0.5]) for _ in range(n_sets)]
    sets += [("layer", of_layer) for of_layer in _by_layer(judge.graph, nodes)]
    sets = [(how, chosen) for how, chosen in sets if chosen]
    measured = _knock_outs(judge, kept.mask, sets, done_before=1)
    done = 1 + 2 * len(sets)
    return Completeness(point, (*measured, *_greedy(judge, kept.mask, nodes, rng, done)))


def _nodes(graph: Graph, mask: BoolMatrix) -> list[int]:
    """Senders of the circuit that are heads or MLPs."""
    return [int(s) for s in np.flatnonzero(mask.any(1)) if s >= graph.n_inputs]


def _by_layer(graph: Graph, nodes: Sequence[int]) -> list[list[int]]:
    layers = sorted({graph.senders[s].layer for s in nodes})
    return [[s for s in nodes if graph.senders[s].layer == layer] for layer in layers]


def _knock_outs(
    judge: Judge, mask: BoolMatrix, sets: Sequence[tuple[str, list[int]]], done_before: int
) -> list[KnockOut]:
    """Every set, cut from the circuit and from the model. A node is cut by cutting every edge out of it."""
    masks = [_without(of, chosen) for _, chosen in sets for of in (mask, judge.graph.legal)]
    outcomes = judge.ledgers["held_out"].all_of(masks, done_before)
    means = [outcome.mean_metric for outcome in outcomes]
    scale = judge.scales["held_out"]
    return [
        KnockOut(
            how=how,
            nodes=tuple(judge.graph.senders[s].name for s in sorted(chosen)),
            metric_circuit=of_circuit,
            metric_model=of_model,
            f_circuit=scale.f(of_circuit),
            f_model=scale.f(of_model),
        )
        for (how, chosen), of_circuit, of_model in zip(sets, means[::2], means[1::2], strict=True)
    ]


def _greedy(
    judge: Judge, mask: BoolMatrix, nodes: Sequence[int], rng: np.random.Generator, done_before: int
) -> list[KnockOut]:
    """The widest gap after each step."""
    chosen: list[int] = []
    found = []
    for _ in range(GREEDY_STEPS):
        left = [node for node in nodes if node not in chosen]
        if not left:
            break
        drawn = rng.choice(left, size=min(GREEDY_CANDIDATES, len(left)), replace=False).tolist()
        tried = _knock_outs(judge, mask, [("greedy", [*chosen, node]) for node in drawn], done_before)
        done_before += 2 * len(tried)
        best = max(range(len(tried)), key=lambda i: tried[i].metric_gap)
        chosen.append(drawn[best])
        found.append(tried[best])
    return found


def _without(mask: BoolMatrix, senders: Sequence[int]) -> BoolMatrix:
    cut = mask.copy()
    cut[list(senders)] = False
    return cut
