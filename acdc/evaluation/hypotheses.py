"""The tests of a circuit as a hypothesis, on held-out prompts, and what each outcome says in words.

Random circuits have the size and the layer profile of the circuit (random_circuits.py), a harder comparison than size
alone. Prompts count as independent observations; those of one template are alike, so p-values are too small by what
that matters. Minimality's test is minimality.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acdc.evaluation.curve import Judge
from acdc.evaluation.editing import complement
from acdc.evaluation.outcomes import Floats
from acdc.evaluation.statistics import (
    ALPHA,
    FEWEST_EXAMPLES,
    QUANTILE,
    Tested,
    claimed_equivalence,
    distance,
    equivalence,
    independence,
    is_constant,
    partial_necessity,
    rounding_of,
    sufficiency,
)
from acdc.graph import BoolMatrix, Graph
from acdc.progress import Progress
from acdc.report import HypothesisTest
from acdc.selection import Kept

FEWEST_CIRCUITS = int(np.ceil(np.log(ALPHA) / np.log(QUANTILE)))  # with fewer, to beat all of them shows nothing
N_OWN = 4  # measured without any random circuit: the model, the empty circuit, the circuit and the rest of the model


def hypotheses_of(
    judge: Judge, kept: Kept, random: Sequence[BoolMatrix], seed: int, progress: Progress
) -> tuple[HypothesisTest, ...]:
    """random: matched circuits; where they are too few for a verdict the tests that need them are left out. Draws that
    are the circuit itself, as a small or dense one's may be, are no comparison and do not count; where too few others
    remain, these tests say so. Raises Cancelled."""
    ledger, graph = judge.ledgers["held_out"], judge.graph
    others = [mask for mask in random if (mask != kept.mask).any()]
    enough = len(others) >= FEWEST_CIRCUITS
    progress.phase("hypothesis tests", N_OWN + 2 * len(others) if enough else N_OWN)
    own = graph.legal, np.zeros_like(graph.legal), kept.mask, _rest(graph, kept.mask)
    model, empty, circuit, rest = (outcome.metric for outcome in ledger.all_of(own))
    rounding = rounding_of(model, empty, circuit, rest)
    of_rest = independence(rest.astype(np.float64) - empty, model, rounding, seed)
    added = _share(distance(rest, empty), distance(model, empty), rounding)
    found = [
        _told("equivalence", equivalence(circuit, model, rounding), _NO_DIFFERENCE),
        _told("claimed equivalence", claimed_equivalence(circuit, model, rounding), _NO_DIFFERENCE),
        _told("independence", of_rest, _why_no_independence(model, rounding), added),
    ]
    if enough:
        others_metric = [outcome.metric for outcome in ledger.all_of(others, done_before=N_OWN)]
        left = [_rest(graph, mask) for mask in others]
        remains = [outcome.metric for outcome in ledger.all_of(left, done_before=N_OWN + len(others))]
        far, far_without = (np.array([distance(model, one) for one in some]) for some in (others_metric, remains))
        found += [
            _told("sufficiency", sufficiency(distance(model, circuit), far, rounding)),
            _told("partial necessity", partial_necessity(distance(model, rest), far_without, rounding)),
        ]
    elif len(random) >= FEWEST_CIRCUITS:
        why = _TOO_FEW.format(same=len(random) - len(others), n=len(random))
        found += [_told(name, None, why) for name in _TIED]
    return tuple(found)


def _rest(graph: Graph, mask: BoolMatrix) -> BoolMatrix:
    return graph.connected(complement(graph, mask))


def _share(of_rest: float, of_model: float, rounding: float) -> str:
    """How much the rest of the model adds to the empty circuit; nothing where the model itself adds nothing."""
    return f", {of_rest / of_model:.1%} of what the model adds," if of_model > rounding else ""


# What a rejected null says, and what one says that is not rejected.
_SAYS = {
    "equivalence": (
        "not equivalent: the circuit is above the model on {share:.0%} of the prompts where they differ",
        "no evidence against equivalence, which is none for it",
    ),
    "claimed equivalence": (
        "equivalent: above the model about as often as below it ({share:.0%})",
        "equivalence is not shown",
    ),
    "independence": (
        "not the whole mechanism: what the rest of the model adds to the empty circuit{size} depends on what the model "
        "does",
        "no dependence found between what the rest of the model adds to the empty circuit{size} and what the model "
        "does",
    ),
    "sufficiency": (
        "nearer to the model than nine in ten random circuits ({counted})",
        "not shown to be nearer to the model than nine in ten random circuits ({counted})",
    ),
    "partial necessity": (
        "to cut it moves the model further than to cut nine in ten random circuits ({counted})",
        "not shown that to cut it moves the model further than to cut nine in ten random circuits ({counted})",
    ),
}


_TIED = {"sufficiency": "as near", "partial necessity": "as far"}  # the tests that need random circuits

# Why nothing could be computed.
_NO_DIFFERENCE = "cannot be told: circuit and model do the same on every prompt, so there is nothing to count"
_TOO_FEW = (
    "cannot be told: {same} of the {n} random circuits drawn are the circuit itself, and fewer than "
    f"{FEWEST_CIRCUITS} others show nothing"
)


def _why_no_independence(model: Floats, rounding: float) -> str:
    if len(model) < FEWEST_EXAMPLES:
        return f"cannot be told of fewer than {FEWEST_EXAMPLES} prompts"
    if is_constant(model, rounding):
        return "cannot be told: by this metric the model itself does the same on every prompt"
    return "cannot be told: what the rest of the model adds to the empty circuit is the same on every prompt"


def _told(name: str, tested: Tested | None, untold: str = "", size: str = "") -> HypothesisTest:
    """untold: why there is no test, where there is none."""
    if tested is None:
        return HypothesisTest(name, None, 0, None, None, untold)
    rejected = tested.p < ALPHA
    told = _SAYS[name][0 if rejected else 1]
    counted = f"{tested.statistic:.0f} of {tested.n}" + (f", {tested.ties} {_TIED[name]}" if tested.ties else "")
    says = told.format(share=tested.statistic, counted=counted, size=size)
    return HypothesisTest(name, tested.statistic, tested.n, tested.p, rejected, says)
