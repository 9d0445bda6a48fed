"""A circuit's figures on each group of prompts, such as a sentence's template: does it hold on all of them?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from acdc.evaluation.curve import Judge
from acdc.evaluation.faithfulness import scale_of
from acdc.evaluation.measuring import Ledger
from acdc.report import GroupFigures
from acdc.selection import Kept

MIN_PROMPTS = 4  # of a group: fewer say too little by themselves


def group_figures(judge: Judge, kept: Kept, seed: int) -> tuple[GroupFigures, ...]:
    """Of every group with at least MIN_PROMPTS, searched ones first. f is in the group's own scale. Nothing is run that
    the evaluation has not run already."""
    return tuple(one for ledger in judge.ledgers.values() for one in _of_split(judge, ledger, kept, seed))


def _of_split(judge: Judge, ledger: Ledger, kept: Kept, seed: int) -> Iterator[GroupFigures]:
    legal = judge.graph.legal
    outcomes = [ledger.known(mask) for mask in (legal, np.zeros_like(legal), kept.mask)]
    groups = np.array(ledger.split.groups)
    for name, n in zip(*np.unique(groups, return_counts=True), strict=True):
        if n < MIN_PROMPTS:
            continue
        full, empty, circuit = (outcome.of_examples(groups == name) for outcome in outcomes)
        scale = scale_of(full, empty, [str(name)] * int(n), seed)
        metric = circuit.mean_metric
        yield GroupFigures(
            split=ledger.split.name,
            group=str(name),
            n_examples=int(n),
            metric=metric,
            metric_full=scale.full,
            f=scale.f(metric),
            kl_share=scale.kl_share(circuit.mean_kl),
            accuracy=float(circuit.correct.mean()),
        )
