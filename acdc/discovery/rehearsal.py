"""What an exact search will take, measured at a few receivers before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from acdc.circuit import Scores
from acdc.discovery.acdc import attributed, largest_edges, require_sense, stages_of, without_validation
from acdc.discovery.candidates import Candidates
from acdc.discovery.ledger import Ledger
from acdc.discovery.problem import Problem
from acdc.discovery.walk import receiver_order, sender_order
from acdc.graph import BoolMatrix, Graph
from acdc.patching.needs import Needs
from acdc.patching.suffix import Rooms
from acdc.progress import Progress

MEASURED = 6  # receivers, and the last one
CHAIN = 16  # edges tested at once


@dataclass(frozen=True)
class Rehearsal:
    """edges: to be tested, about, over all thresholds. prompts: that they are tested on, the first stage's. seconds: of
    the whole search on this machine; where a threshold is bisected, of one try. ms_per_edge: at the receivers measured,
    from the output to the input. memory_bytes: the most that was needed at them, by all stages."""

    edges: int
    prompts: int
    seconds: float
    ms_per_edge: tuple[float, ...]
    memory_bytes: int


def rehearse_acdc(
    problem: Problem,
    progress: Progress,
    *,
    thresholds: Sequence[float],
    rule: str,
    edges: int | None = None,
    warm_start: float | None = None,
    stages: Sequence[int] = (),
    validation: int = 0,
) -> Rehearsal:
    """Take the edges whose attribution reaches a threshold for those that will be kept (all, where the objective has no
    gradient); with those of the smallest one standing, test a chain of edges at receivers that have equal shares of all
    tests before them, and at the last. Arguments as in `search_acdc`. Raises TaskError and OutOfMemory as the search
    would."""
    require_sense(problem, thresholds, rule, edges, "reverse", validation)
    searched = without_validation(problem, validation)
    all_stages = [stage for (stage,) in stages_of([searched], stages)]
    graph = problem.t.graph
    has_gradient = searched.objective.has_gradient
    scores = attributed(searched, progress) if has_gradient else np.full(graph.legal.shape, np.inf, np.float32)
    start = graph.legal.copy() if warm_start is None else largest_edges(graph, scores, warm_start)
    likely = [start & circuit for circuit in _likely(graph, scores, thresholds, rule, edges)]
    kept = likely[0]
    visits = _visits(graph, start, kept)
    if not visits:  # a warm start without an edge to the logits
        return Rehearsal(edges=0, prompts=all_stages[0].n_examples, seconds=0.0, ms_per_edge=(), memory_bytes=0)
    n_tests = start[:, visits].sum(0) * np.sum([np.isin(visits, _visits(graph, start, one)) for one in likely], 0)
    before = np.cumsum(n_tests)
    shares = (np.arange(MEASURED) + 0.5) / MEASURED * before[-1]
    places = sorted({*(int(np.searchsorted(before, share)) for share in shares), len(visits) - 1})
    ledger = Ledger(problem.memory_bytes, searched.n_examples)
    progress.phase("a few receivers", len(places))
    measured = []
    for done, place in enumerate(places, start=1):
        measured.append(_seconds_per_edge(all_stages, start, kept, visits[place], ledger))
        progress.step(done)
    per_edge = np.interp(np.arange(len(visits)), places, measured)
    return Rehearsal(
        edges=int(before[-1]),
        prompts=all_stages[0].n_examples,
        seconds=float((per_edge * n_tests).sum()),
        ms_per_edge=tuple(1e3 * seconds for seconds in measured),
        memory_bytes=ledger.most,
    )


def _likely(
    graph: Graph, scores: Scores, thresholds: Sequence[float], rule: str, edges: int | None
) -> list[BoolMatrix]:
    """The circuits that attribution's scores make likely, one a threshold, the largest first: it holds all others."""
    if edges is not None:
        return [largest_edges(graph, scores, min(1.0, edges / graph.n_edges))]
    sizes = scores if rule == "signed" else np.abs(scores)
    return [sizes >= threshold for threshold in sorted(thresholds)]


def _visits(graph: Graph, start: BoolMatrix, kept: BoolMatrix) -> list[int]:
    """Receivers with edges to test that can change the metric where `kept` are kept, in the search's order."""
    needs, found = Needs(graph), []
    for receiver in receiver_order(graph):
        if needs.of_receiver(receiver) and start[:, receiver].any():
            found.append(receiver)
        needs.decide(receiver, kept[:, receiver])
    return found


def _seconds_per_edge(
    stages: Sequence[Problem], start: BoolMatrix, kept: BoolMatrix, receiver: int, ledger: Ledger
) -> float:
    """On the first stage, with the others standing beside it."""
    graph = stages[0].t.graph
    order = list(receiver_order(graph))
    decided = order[: order.index(receiver)]
    begun = start | kept
    begun[:, decided] = kept[:, decided]
    senders = [sender for sender in sender_order(graph, receiver, "reverse", 0) if start[sender, receiver]]
    rooms = Rooms(stages[0].t)
    standing = [Candidates(stage, begun, rooms, ledger) for stage in stages]
    for candidates in standing:
        for earlier in decided:
            candidates.skip(earlier, kept[:, earlier])
    opening = _seconds(lambda: [candidates.open(receiver, senders) for candidates in standing]) / len(senders)
    will_go: Sequence[bool] = [True] * min(CHAIN, standing[0].rows_at_once, len(senders))
    standing[0].values(will_go)  # what only the first batch at a receiver computes
    rows = _seconds(lambda: standing[0].values(will_go)) / len(will_go)
    for candidates in standing:
        ledger.release(candidates)
    return opening + rows


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
