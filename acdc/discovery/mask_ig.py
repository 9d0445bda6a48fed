"""Gradients integrated over the mask itself, from the empty circuit (M = 0 everywhere) to the whole model (M = 1).

    score[s, r] = integral over alpha in [0, 1] of dm/dM[s, r] at M = alpha everywhere

Every edge is faded in together, so all scores add up to m(full) - m(empty): integrated gradients (Sundararajan et al.
2017, arXiv 1703.01365) with the edges' mask as the input. `eap-ig-inputs` fades in the embeddings alone and keeps each
edge's clean difference; here the difference is that of the faded run, and what an edge is worth is seen in the company
of edges faded as much as it is.

With one alpha for all edges every receiver of a layer reads the same stream, in which each sender writes
a_s + alpha (out_s - a_s): a plain forward and backward a step, not a masked one.
"""

from __future__ import annotations

from torch import Tensor

from acdc.discovery.attribution import (
    change_from,
    completeness_error,
    edge_scores,
    found_by,
    path_of,
    require_gradient,
    run_clean_again,
)
from acdc.discovery.problem import Found, Problem
from acdc.patching.forward import Ignore, NodeOutputs
from acdc.patching.gradients import gradients_at_receivers
from acdc.progress import Progress


def score_mask_ig(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    """Also reports the completeness error: |sum of all scores - (m(full) - m(empty))| over the latter, which goes to 0
    as steps grow."""
    require_gradient(problem)
    scores = edge_scores(problem)
    progress.phase("attribution", len(problem.prompts) * steps)
    change = 0.0
    for done, p in enumerate(problem.prompts):
        clean, ablation, last = run_clean_again(problem.t, p)
        for number, alpha in enumerate(path_of(problem, steps)):
            faded = _Faded(clean, ablation, alpha)
            gradients, _ = gradients_at_receivers(problem.t, faded.inputs, problem.mean_of(p), faded, p.prefix)
            scores.add(p.batch, faded.differences(), gradients, 1.0 / steps)
            progress.step(done * steps + number + 1)
        empty = _Faded(clean, ablation, 0.0)
        change += change_from(problem, p, empty.inputs, empty, last)
    error = completeness_error(float(scores.result().sum()), change)
    return [found_by(problem, scores, {"forward": 2, "forward_backward": steps}, {"completeness_error": error})]


class _Faded(Ignore):
    """A run in which every sender writes a_s + alpha (out_s - a_s). Keeps the differences out_s - a_s."""

    def __init__(self, clean: NodeOutputs, ablation: NodeOutputs, alpha: float) -> None:
        self.ablation, self.alpha = ablation, alpha
        self.of_inputs = clean.inputs - ablation.inputs
        self.inputs = ablation.inputs + alpha * self.of_inputs
        self.z: list[Tensor] = []
        self.mlps: list[Tensor] = []

    def heads(self, layer: int, z: Tensor) -> Tensor:
        return self._fade(z, self.ablation.z[layer], self.z)

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        return self._fade(out, self.ablation.mlp[layer], self.mlps)

    def differences(self) -> NodeOutputs:
        return NodeOutputs(self.of_inputs, self.z, self.mlps)

    def _fade(self, out: Tensor, ablated: Tensor, differences: list[Tensor]) -> Tensor:
        difference = out - ablated
        differences.append(difference.detach())
        return ablated + self.alpha * difference
