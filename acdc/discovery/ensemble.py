"""The mean rank of edges over several methods, each edge asked first whether other prompts would give it another sign.

Scores of unlike methods cannot be averaged: they are in other units, and a few edges of one would outweigh all of
another. Ranks can. Each method's edges are ranked by |score| from 1 / n_edges (the smallest) to 1 (the largest), ties
at their middle; an edge of score 0 counts as 0. Then

    score[s, r] = mean over methods of  sign * rank     ranks "signed": between -1 and 1, positive where the edge helps;
                                                        methods that disagree on the sign of an edge cancel out
    score[s, r] = mean over methods of  rank            ranks "absolute": between 0 and 1, how large, whichever way

So signed scores can be selected by either rule and absolute ones by size alone. A method that gives no signs (edge
pruning, information flow) speaks for every edge.

consistency: an edge keeps its score in a method only where it has the same sign in at least this share of bootstrap
resamples of the prompts, drawn as whole groups where there are enough of them; elsewhere it counts as 0. That edges
whose attribution is not consistent over resamples should be left out is from Nikankin et al. 2025 (arXiv 2510.25786);
the share and the ranks are ours. No model runs for it: it needs methods that give scores per example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from acdc.circuit import Scores
from acdc.discovery.problem import Found, Problem
from acdc.errors import TaskError
from acdc.evaluation.bootstrap import units_of
from acdc.evaluation.outcomes import Bools, Floats
from acdc.progress import Part, Progress

RESAMPLES = 1000
EDGES_AT_ONCE = 2**13
NO_EXAMPLES = "a mean rank over methods is no mean over examples"


@dataclass(frozen=True)
class Member:
    """A method that takes part, by its name, and what it is called with."""

    name: str
    score: Callable[..., list[Found]]
    arguments: Mapping[str, object]


def score_ensemble(
    problem: Problem,
    progress: Progress,
    *,
    methods: Sequence[Member],
    ranks: str,
    consistency: float | None,
    resample_seed: int,
) -> list[Found]:
    """Raises TaskError where `consistency` is asked for and a method's scores per example are not to be had."""
    graph = problem.t.graph
    problem = replace(problem, keep_examples=consistency is not None)
    total = np.zeros(graph.n_edges)
    passes: dict[str, float] = {}
    facts: dict[str, float] = {}
    for number, member in enumerate(methods, 1):
        progress.log(f"ensemble: {member.name}, {number} of {len(methods)}")
        # A checkpoint of one method would be taken for that of another.
        (found,) = member.score(problem, Part(progress), **member.arguments)
        scores = graph.in_order(found.scores).astype(np.float64)
        facts |= {f"{name} ({number})": value for name, value in found.facts.items()}
        if consistency is not None:
            is_consistent = _consistent(problem, member, found, scores, consistency, resample_seed)
            scores = np.where(is_consistent, scores, 0.0)
            facts[f"consistent_edges ({number})"] = float(is_consistent.sum())
        by_rank = signed_ranks(scores)
        total += by_rank if ranks == "signed" else np.abs(by_rank)
        for kind, count in found.passes.items():
            passes[kind] = passes.get(kind, 0.0) + count
    mean = graph.matrix_of((total / len(methods)).astype(np.float32))
    return [Found(mean, graph.legal.copy(), passes=passes, facts=facts, why_no_examples=NO_EXAMPLES)]


def signed_ranks(scores: Floats) -> Floats:
    """Each edge's place by |score|, from 1 / n to 1, with its sign; ties share their middle, 0 stays 0: [edge]"""
    ranked: Floats = np.sign(scores) * midranks(np.abs(scores)) / len(scores)
    return ranked


def midranks(values: Floats) -> Floats:
    """Places from 1, the smallest first; ties share their middle."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return found


def share_of_sign(per_example: Scores, scores: Floats, groups: Sequence[str], seed: int) -> Floats:
    """The share of resamples in which the mean of an edge's scores has the sign of `scores`. per_example: [example,
    edge]; groups: each example's. A score of 0 has none: [edge]."""
    units = units_of(groups)
    drawn = units.draw(RESAMPLES, seed)[:, units.member_of].astype(np.float64)
    share = np.empty(len(scores))
    for first in range(0, len(scores), EDGES_AT_ONCE):
        edges = slice(first, first + EDGES_AT_ONCE)
        sums = drawn @ per_example[:, edges].astype(np.float64)  # of a resample's mean, only the sign is asked
        share[edges] = (np.sign(sums) == np.sign(scores[edges])).mean(0) * (scores[edges] != 0)
    return share


def _consistent(problem: Problem, member: Member, found: Found, scores: Floats, consistency: float, seed: int) -> Bools:
    if found.per_example is None:
        raise TaskError(f"`consistency` needs {member.name}'s scores of every prompt: {found.why_no_examples}")
    groups = problem.groups or [str(example) for example in range(problem.n_examples)]
    is_consistent: npt.NDArray[np.bool_] = share_of_sign(found.per_example, scores, groups, seed) >= consistency
    return is_consistent
