"""What an exact search will take, measured at a few receivers before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from acdc.discovery.acdc import largest_edges
from acdc.discovery.candidates import Candidates
from acdc.discovery.ledger import Ledger
from acdc.discovery.problem import Problem
from acdc.discovery.walk import receiver_order, sender_order
from acdc.graph import BoolMatrix
from acdc.patching.needs import Needs
from acdc.patching.suffix import Rooms

LIKELY_SHARE = 0.005  # of the edges: attribution's guess at what will be kept,
LIKELY_EDGES = 50  # and at least so many
MEASURED = 6  # receivers
CHAIN = 16  # edges tested at once
ACCEPTED = 0.92  # of the rows, as `make bench-exact` finds it


@dataclass(frozen=True)
class Rehearsal:
    """Of one search at one threshold. edges: to be tested, about. seconds: on this machine. ms_per_edge: at the
    receivers measured, from the output to the input. memory_bytes: the most that was needed at them."""

    edges: int
    seconds: float
    ms_per_edge: tuple[float, ...]
    memory_bytes: int


def rehearse_acdc(problem: Problem) -> Rehearsal:
    """Take attribution's strongest edges for the circuit that will be kept; with it standing, test a chain of edges at
    receivers that have equal shares of all tests before them. Raises OutOfMemory as the search would."""
    n_edges = problem.t.graph.n_edges
    kept = largest_edges(problem, min(1.0, max(LIKELY_SHARE, LIKELY_EDGES / n_edges)))
    visits = _visits(problem, kept)
    n_senders = np.array([problem.t.graph.n_senders_before[receiver] for receiver in visits])
    before = np.cumsum(n_senders)
    shares = (np.arange(MEASURED) + 0.5) / MEASURED * before[-1]
    places = sorted({int(np.searchsorted(before, share)) for share in shares})
    ledger = Ledger(problem.memory_bytes, problem.n_examples)
    measured = [_seconds_per_edge(problem, kept, visits[place], ledger) for place in places]
    per_edge = np.interp(np.arange(len(visits)), places, measured)
    return Rehearsal(
        edges=int(before[-1]),
        seconds=float((per_edge * n_senders).sum()),
        ms_per_edge=tuple(1e3 * seconds for seconds in measured),
        memory_bytes=ledger.most,
    )


def _visits(problem: Problem, kept: BoolMatrix) -> list[int]:
    """Receivers that can change the metric where these edges are kept, in the search's order."""
    graph = problem.t.graph
    needs, found = Needs(graph), []
    for receiver in receiver_order(graph):
        if needs.of_receiver(receiver):
            found.append(receiver)
        needs.decide(receiver, kept[:, receiver])
    return found


def _seconds_per_edge(problem: Problem, kept: BoolMatrix, receiver: int, ledger: Ledger) -> float:
    graph = problem.t.graph
    order = list(receiver_order(graph))
    decided = order[: order.index(receiver)]
    start = graph.legal.copy()
    start[:, decided] = kept[:, decided]
    candidates = Candidates(problem, start, Rooms(problem.t), ledger)
    for earlier in decided:
        candidates.skip(earlier, kept[:, earlier])
    senders = sender_order(graph, receiver, "reverse", 0)
    opening = _seconds(lambda: candidates.open(receiver, senders)) / len(senders)
    will_go: Sequence[bool] = [True] * min(CHAIN, len(senders))
    candidates.values(will_go)  # what only the first batch at a receiver computes
    rows = _seconds(lambda: candidates.values(will_go)) / len(will_go)
    ledger.release(candidates)
    return opening + rows / ACCEPTED


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
