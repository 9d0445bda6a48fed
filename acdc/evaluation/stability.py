"""Stability: would other prompts of the same kind have given the same circuit?

The search examples are drawn with replacement (whole groups where there are enough of them: see bootstrap.py), their
scores averaged anew, and a circuit of as many edges selected by the same rule. No model runs: a method that gives
scores per example has done all of that already.

Held fixed are the ablation values, the size asked for, and the shares of several objectives: all belong to what the
scores mean and were set on the whole set of examples, and new shares would need every objective's scores apart.

The mean Jaccard of resampled circuits gets no interval. Resamples share the noise of the sample that they come from: of
pure noise they agree more than new samples would, and on a clear signal less, so no interval around it is one of the
overlap with circuits of other prompts. That is estimated beside it, from disjoint halves: see split_half.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from acdc.circuit import Scores
from acdc.evaluation.bootstrap import units_of
from acdc.evaluation.reselection import Reselection
from acdc.evaluation.split_half import split_half
from acdc.graph import BoolMatrix, Graph
from acdc.progress import Progress
from acdc.report import Stability
from acdc.selection import RULES, Kept

RESAMPLES = 200
MIN_EXAMPLES = 32  # fewer say too little about what other prompts would give
STABLE = 0.8  # mean pairwise Jaccard; the usual bar, see docs/concepts/faithfulness.md
EDGES_AT_ONCE = 2**14  # a multiple of 8

Packed = npt.NDArray[np.uint8]  # [circuit, ceil(n_edges / 8)]: edges in the graph's order, one bit each


def stability_of(
    graph: Graph,
    per_example: Scores,
    tested: BoolMatrix,
    groups: Sequence[str],
    kept: Kept,
    seed: int,
    progress: Progress,
) -> tuple[Stability, Scores | None]:
    """The verdict on a selected circuit, and the share of resampled circuits that have each edge.

    per_example: [n_examples, n_edges], edges in the graph's order. groups: each example's. Returns the share as
    [senders, receivers], None where nothing was measured. Raises Cancelled.
    """
    if kept.selected.rule not in RULES:
        return Stability("not measured", "the circuit is no selection by scores"), None
    if not kept.mask.any():
        return Stability("not measured", "the circuit has no edges"), None
    units = units_of(groups)
    progress.phase("stability", RESAMPLES)
    reselection = Reselection(graph, per_example, tested, kept.selected.rule, kept.selected.asked_for)
    packed = [np.packbits(graph.in_order(kept.mask))]
    for circuit in reselection.circuits(units.draw(RESAMPLES, seed)[:, units.member_of]):
        packed.append(np.packbits(circuit))
        progress.step(len(packed) - 1)
    jaccard, included = _overlap(np.stack(packed))
    share = included[: graph.n_edges] / RESAMPLES
    is_kept = graph.in_order(kept.mask)
    between = float(jaccard[1:, 1:][np.triu_indices(RESAMPLES, 1)].mean())
    verdict, reason = _verdict(between, len(groups))
    halves = split_half(reselection, units, seed, progress)
    stability = Stability(
        verdict=verdict,
        reason=reason,
        jaccard=between,
        jaccard_with_kept=float(jaccard[0, 1:].mean()),
        n_resamples=RESAMPLES,
        n_examples=len(groups),
        unit=units.name,
        n_units=units.n,
        kept_in_half=int((share[is_kept] > 0.5).sum()),
        others_in_half=int((share[~is_kept] > 0.5).sum()),
        split_half=None if halves is None else halves.jaccard,
        interval=None if halves is None else (halves.low, halves.high),
    )
    return stability, graph.matrix_of(share.astype(np.float32))


def _verdict(jaccard: float, n_examples: int) -> tuple[str, str]:
    if n_examples < MIN_EXAMPLES:
        return "no verdict", f"{n_examples} search prompts are fewer than {MIN_EXAMPLES}"
    return ("stable" if jaccard >= STABLE else "unstable"), ""


def _overlap(packed: Packed) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Jaccard of every two circuits, and how many circuits after the first have each edge. Two empty circuits have
    nothing in common."""
    common = np.zeros((len(packed), len(packed)))
    included = []
    for start in range(0, packed.shape[1], EDGES_AT_ONCE // 8):
        bits = np.unpackbits(packed[:, start : start + EDGES_AT_ONCE // 8], axis=1)
        included.append(bits[1:].sum(0, dtype=np.int64))
        numbers = bits.astype(np.float32)  # whole numbers below 2^24: exact
        common += numbers @ numbers.T
    sizes = common.diagonal()
    either = sizes[:, None] + sizes[None, :] - common
    jaccard = np.divide(common, either, out=np.zeros_like(common), where=either > 0)
    return jaccard, np.concatenate(included)
