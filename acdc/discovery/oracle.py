"""Automated circuit discovery (Conmy et al. 2023, arXiv 2304.14997), one edge and one masked forward at a time.

1. Start from the full graph.
2. Walk the receivers from the output to the input: logits; then per layer, from the last, the MLP, the q inputs (heads
   descending), k, v. For each, walk its senders from late to early.
3. Cut the edge if what it costs, m(circuit as it stands) - m(without it), is below the threshold (under the
   absolute rule: if its size is). A cut edge stays cut, and the circuit without it is the one that stands from then on.

A receiver with no kept way to the logits cannot change m: its edges cost exactly 0, no forward is spent on them, and
they count as never tested. Scores are the costs seen. Over several thresholds there is a further result, whose scores
are the largest thresholds survived.
This is the plain form, the oracle of any faster one. Cost: one masked forward per tested edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from acdc.circuit import Scores
from acdc.discovery.problem import Found, Problem
from acdc.graph import BoolMatrix, Graph
from acdc.progress import Checkpoint, Progress


def search_acdc(problem: Problem, progress: Progress, *, thresholds: Sequence[float], rule: str) -> list[Found]:
    """thresholds: one search each, the largest first. rule: signed or absolute. Checkpoints after every receiver."""
    graph = problem.t.graph
    order = list(receiver_order(graph))
    thresholds = sorted(thresholds, reverse=True)
    state = _State.resumed(progress.resume(), graph, len(order))
    progress.phase("acdc", graph.n_edges * len(thresholds))
    while state.search < len(thresholds):
        current = float(problem.measure(_mask(state.kept))[0].mean())
        for position in range(state.position, len(order)):
            current = _visit(problem, progress, state, order[position], current, thresholds[state.search], rule)
            state.position = position + 1
            progress.save(state.checkpoint(len(order)))
        state.next_search(graph)
    return _results(graph, thresholds, state)


def receiver_order(graph: Graph) -> Iterator[int]:
    """Receivers from the output to the input, as in step 2."""
    yield graph.n_receivers - 1
    for layer in reversed(range(graph.shape.n_layers)):
        of_layer = range(graph.n_receivers)[graph.receivers_of_layer(layer)]
        for kind in ("mlp", "q", "k", "v"):
            yield from reversed([r for r in of_layer if graph.receivers[r].kind == kind])


@dataclass
class _State:
    """Where a run over several thresholds stands. done_*: of the searches that ended, [search, S, R]."""

    kept: BoolMatrix
    costs: Scores
    tested: BoolMatrix
    done_kept: list[BoolMatrix]
    done_costs: list[Scores]
    done_tested: list[BoolMatrix]
    position: int = 0
    evaluations: int = 0

    @property
    def search(self) -> int:
        return len(self.done_kept)

    @classmethod
    def resumed(cls, saved: Checkpoint | None, graph: Graph, n_receivers: int) -> _State:
        if saved is None:
            return cls(*_fresh(graph), [], [], [])
        kept, tested = saved.arrays["kept"].astype(bool), saved.arrays["tested"].astype(bool)
        costs = saved.arrays["costs"].astype(np.float32)
        done = list(kept[:-1]), list(costs[:-1]), list(tested[:-1])
        state = cls(kept[-1], costs[-1], tested[-1], *done, position=saved.step % n_receivers)
        state.evaluations = int(str(saved.facts["evaluations"]))
        if saved.step and state.position == 0:  # saved right at the end of a search
            state.next_search(graph)
        return state

    def checkpoint(self, n_receivers: int) -> Checkpoint:
        arrays = {
            "kept": np.stack([*self.done_kept, self.kept]),
            "costs": np.stack([*self.done_costs, self.costs]),
            "tested": np.stack([*self.done_tested, self.tested]),
        }
        return Checkpoint(self.search * n_receivers + self.position, {"evaluations": self.evaluations}, arrays)

    def next_search(self, graph: Graph) -> None:
        self.done_kept.append(self.kept)
        self.done_costs.append(self.costs)
        self.done_tested.append(self.tested)
        self.kept, self.costs, self.tested = _fresh(graph)
        self.position = 0


def _fresh(graph: Graph) -> tuple[BoolMatrix, Scores, BoolMatrix]:
    """Where each search begins: all kept, nothing tested."""
    return graph.legal.copy(), np.zeros(graph.legal.shape, np.float32), np.zeros_like(graph.legal)


def _visit(
    problem: Problem,
    progress: Progress,
    state: _State,
    receiver: int,
    current: float,
    threshold: float,
    rule: str,
) -> float:
    """Decide on every edge into one receiver; returns the metric of the circuit as it then stands."""
    graph = problem.t.graph
    is_live = graph.reaches_logits(state.kept)[receiver]
    done = state.search * graph.n_edges + int(graph.legal[:, list(receiver_order(graph))[: state.position]].sum())
    for count, sender in enumerate(reversed(range(int(graph.n_senders_before[receiver])))):
        without = current
        if is_live:
            state.kept[sender, receiver] = False
            without = float(problem.measure(_mask(state.kept))[0].mean())
            state.tested[sender, receiver] = True
            state.evaluations += 1
        cost = current - without
        is_cut = (abs(cost) if rule == "absolute" else cost) < threshold
        state.kept[sender, receiver] = not is_cut
        state.costs[sender, receiver] = cost
        current = without if is_cut else current
        progress.step(done + count + 1, graph.receivers[receiver].name)
    return current


def _mask(kept: BoolMatrix) -> torch.Tensor:
    return torch.from_numpy(kept[None].astype(np.float32))


def _results(graph: Graph, thresholds: Sequence[float], state: _State) -> list[Found]:
    passes = {"masked_forward": float(state.evaluations)}
    searches = zip(thresholds, state.done_kept, state.done_costs, state.done_tested, strict=True)
    if len(thresholds) == 1:
        return [Found(costs, tested, kept, passes=passes) for _, kept, costs, tested in searches]
    found = [Found(costs, tested, kept, f"threshold={tau!r}", passes) for tau, kept, costs, tested in searches]
    survived = np.zeros(graph.legal.shape, np.float32)
    for threshold, kept in reversed(list(zip(thresholds, state.done_kept, strict=True))):  # ascending: the largest last
        survived[kept] = threshold
    return [*found, Found(survived, graph.legal.copy(), key="thresholds", passes=passes)]
