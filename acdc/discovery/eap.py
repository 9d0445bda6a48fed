"""Edge attribution patching and its integrated forms.

`eap` (Syed et al. 2023, arXiv 2310.10348): score[s, r] = <out_s - a_s, dm/d input_r> at the clean run.
`eap-ig-inputs` (Hanna et al. 2024, arXiv 2403.17806): the gradient averaged over n runs whose embeddings lie on the
    straight path from their ablation value to clean, at k/n, k = 1..n (for KL at the midpoints, as its gradient is zero
    at the clean run).
`eap-ig-activations` (ibid.): for each sublayer's senders, the gradient averaged over n runs in which their own output
    lies on the path; only the edges that leave these senders take part.

Each also gives the scores that every example has by itself, if asked to and if they fit.

Sign: positive means that the edge helps: cutting it would lower m, to first order.
Cost over the data: eap 2 forward + 1 forward-backward; -inputs 2 forward + n forward-backward; -activations 2 forward +
n (2L + 1) forward-backward.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from acdc.discovery.attribution import (
    change_from,
    completeness_error,
    edge_scores,
    found_by,
    path_of,
    require_gradient,
    require_slope_at_clean,
    run_clean_again,
    score_at_clean,
)
from acdc.discovery.problem import Found, Problem
from acdc.models.transformer import Transformer
from acdc.patching.forward import Ignore, NodeOutputs
from acdc.patching.gradients import gradients_at_receivers
from acdc.progress import Progress


def score_eap(problem: Problem, progress: Progress) -> list[Found]:
    """Raises TaskError for an objective whose gradient at the clean run says nothing."""
    require_slope_at_clean(problem, "eap")
    return score_at_clean(problem, progress)


def score_eap_ig_inputs(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    """Also reports the completeness error: |sum of the embedding's scores - (m(clean) - m(embeddings ablated))| over
    the latter, which goes to 0 as steps grow."""
    require_gradient(problem)
    t = problem.t
    scores = edge_scores(problem)
    progress.phase("attribution", len(problem.prompts) * steps)
    change = 0.0
    for done, p in enumerate(problem.prompts):
        clean, ablation, last = run_clean_again(t, p)
        differences = clean.minus(ablation)
        for number, alpha in enumerate(path_of(problem, steps)):
            inputs = ablation.inputs + alpha * differences.inputs
            gradients, _ = gradients_at_receivers(t, inputs, problem.mean_of(p), prefix=p.prefix)
            scores.add(p.batch, differences, gradients, 1.0 / steps)
            progress.step(done * steps + number + 1)
        change += change_from(problem, p, ablation.inputs, Ignore(), last)
    attributed = float(scores.result()[: t.graph.n_inputs].sum())
    error = completeness_error(attributed, change)
    return [found_by(problem, scores, {"forward": 2, "forward_backward": steps}, {"completeness_error": error})]


def score_eap_ig_activations(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    require_gradient(problem)
    t = problem.t
    scores = edge_scores(problem)
    units = _sublayers(t)
    progress.phase("attribution", len(problem.prompts) * len(units) * steps)
    done = 0
    for p in problem.prompts:
        clean, ablation, _ = run_clean_again(t, p)
        differences = clean.minus(ablation)
        for unit in units:
            for alpha in path_of(problem, steps):
                watcher = _OnPath(unit, clean, ablation, alpha)
                gradients, _ = gradients_at_receivers(t, watcher.inputs, problem.mean_of(p), watcher, p.prefix)
                scores.add(p.batch, differences, gradients, 1.0 / steps, unit.senders)
                done += 1
                progress.step(done)
    return [found_by(problem, scores, {"forward": 2, "forward_backward": steps * len(units)}, {})]


class _Unit:
    """The senders of one sublayer: kind is inputs, heads or mlp."""

    def __init__(self, kind: str, layer: int, senders: slice) -> None:
        self.kind, self.layer, self.senders = kind, layer, senders


def _sublayers(t: Transformer) -> Sequence[_Unit]:
    units = [_Unit("inputs", -1, slice(0, t.graph.n_inputs))]
    for layer in range(t.n_layers):
        heads = t.graph.heads_of_layer(layer)
        units.append(_Unit("heads", layer, heads))
        if t.graph.shape.has_mlp:
            units.append(_Unit("mlp", layer, slice(heads.stop, heads.stop + 1)))
    return units


class _OnPath(Ignore):
    """A run in which one sublayer's output lies on the path from its ablation value (alpha 0) to clean (alpha 1)."""

    def __init__(self, unit: _Unit, clean: NodeOutputs, ablation: NodeOutputs, alpha: float) -> None:
        self.unit, self.clean, self.ablation, self.alpha = unit, clean, ablation, alpha
        self.inputs = self._between(ablation.inputs, clean.inputs) if unit.kind == "inputs" else clean.inputs

    def heads(self, layer: int, z: Tensor) -> Tensor:
        if (self.unit.kind, self.unit.layer) == ("heads", layer):
            return self._between(self.ablation.z[layer], self.clean.z[layer])
        return z

    def mlp(self, layer: int, out: Tensor) -> Tensor:
        if (self.unit.kind, self.unit.layer) == ("mlp", layer):
            return self._between(self.ablation.mlp[layer], self.clean.mlp[layer])
        return out

    def _between(self, start: Tensor, end: Tensor) -> Tensor:
        return start + self.alpha * (end - start)
