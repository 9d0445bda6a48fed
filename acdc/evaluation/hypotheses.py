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
from acdc.evaluation.statistics import (
    ALPHA,
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

OF_EXAMPLES = ("equivalence", "claimed equivalence", "independence")  # tests that need no random circuits
FEWEST_CIRCUITS = int(np.ceil(np.log(ALPHA) / np.log(QUANTILE)))  # with fewer, to beat all of them shows nothing
N_OWN = 4  # measured without any random circuit: the model, the empty circuit, the circuit and the rest of the model


def hypotheses_of(
    judge: Judge, kept: Kept, random: Sequence[BoolMatrix], seed: int, progress: Progress
) -> tuple[HypothesisTest, ...]:
    """random: matched circuits; too few for a verdict leave out the tests that need them. Draws that are the circuit
    itself, as a small or dense one's may be, are no comparison and do not count. Raises Cancelled."""
    ledger, graph = judge.ledgers["held_out"], judge.graph
    random = [mask for mask in random if (mask != kept.mask).any()]
    enough = len(random) >= FEWEST_CIRCUITS
    progress.phase("hypothesis tests", N_OWN + 2 * len(random) if enough else N_OWN)
    own = graph.legal, np.zeros_like(graph.legal), kept.mask, _rest(graph, kept.mask)
    model, empty, circuit, rest = (outcome.metric for outcome in ledger.all_of(own))
    rounding = rounding_of(model, empty, circuit, rest)
    if is_constant(model, rounding):
        why = "cannot be told: by this metric the model itself does the same on every prompt"
        found = [HypothesisTest(name, None, 0, None, None, why) for name in OF_EXAMPLES]
    else:
        tests = (
            equivalence(circuit, model, rounding),
            claimed_equivalence(circuit, model, rounding),
            independence(rest.astype(np.float64) - empty, model, rounding, seed),
        )
        size = _share(distance(rest, empty), distance(model, empty), rounding)
        found = [_told(name, tested, size) for name, tested in zip(OF_EXAMPLES, tests, strict=True)]
    if enough:
        others = [outcome.metric for outcome in ledger.all_of(random, done_before=N_OWN)]
        left = [_rest(graph, mask) for mask in random]
        remains = [outcome.metric for outcome in ledger.all_of(left, done_before=N_OWN + len(random))]
        far, far_without = (np.array([distance(model, one) for one in some]) for some in (others, remains))
        found += [
            _told("sufficiency", sufficiency(distance(model, circuit), far, rounding)),
            _told("partial necessity", partial_necessity(distance(model, rest), far_without, rounding)),
        ]
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


_TIED = {"sufficiency": "as near", "partial necessity": "as far"}
_NO_DIFFERENCE = "circuit and model do the same on every prompt: there is nothing to count"
_UNTOLD = {
    "equivalence": _NO_DIFFERENCE,
    "claimed equivalence": _NO_DIFFERENCE,
    "independence": "cannot be told: what the rest of the model adds to the empty circuit is the same on every prompt, "
    "or there are fewer than four",
}


def _told(name: str, tested: Tested | None, size: str = "") -> HypothesisTest:
    if tested is None:
        return HypothesisTest(name, None, 0, None, None, _UNTOLD[name])
    rejected = tested.p < ALPHA
    told = _SAYS[name][0 if rejected else 1]
    counted = f"{tested.statistic:.0f} of {tested.n}" + (f", {tested.ties} {_TIED[name]}" if tested.ties else "")
    says = told.format(share=tested.statistic, counted=counted, size=size)
    return HypothesisTest(name, tested.statistic, tested.n, tested.p, rejected, says)
