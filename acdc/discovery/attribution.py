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

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from acdc.discovery.problem import Found, Problem
from acdc.errors import TaskError
from acdc.models.transformer import Transformer
from acdc.patching.circuits import Prompts
from acdc.patching.forward import Ignore, NodeOutputs, record_from, run_plain
from acdc.patching.gradients import EdgeScores, bytes_per_example, gradients_at_receivers
from acdc.progress import Progress

EXAMPLES_SHARE = 0.25  # of memory_bytes, for the scores per example of one objective


def score_eap(problem: Problem, progress: Progress) -> list[Found]:
    """Raises TaskError for an objective whose gradient at the clean run says nothing."""
    _require_gradient(problem)
    if problem.objective.name == "kl_divergence":
        raise TaskError("eap cannot use kl_divergence: its gradient at the clean run is zero; use eap-ig-inputs")
    scores = _edge_scores(problem)
    progress.phase("attribution", len(problem.prompts))
    for done, p in enumerate(problem.prompts):
        clean, ablation, _ = _later(problem.t, p)
        gradients, _ = gradients_at_receivers(problem.t, clean.inputs, problem.mean_of(p), prefix=p.prefix)
        scores.add(p.batch, clean.minus(ablation), gradients, 1.0)
        progress.step(done + 1)
    return [_found(problem, scores, {"forward": 2, "forward_backward": 1}, {})]


def score_eap_ig_inputs(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    """Also reports the completeness error: |sum of the embedding's scores - (m(clean) - m(embeddings ablated))| over
    the latter, which goes to 0 as steps grow."""
    _require_gradient(problem)
    t = problem.t
    scores = _edge_scores(problem)
    progress.phase("attribution", len(problem.prompts) * steps)
    change = 0.0
    for done, p in enumerate(problem.prompts):
        clean, ablation, last = _later(t, p)
        differences = clean.minus(ablation)
        for number, alpha in enumerate(_path(problem, steps)):
            inputs = ablation.inputs + alpha * differences.inputs
            gradients, _ = gradients_at_receivers(t, inputs, problem.mean_of(p), prefix=p.prefix)
            scores.add(p.batch, differences, gradients, 1.0 / steps)
            progress.step(done * steps + number + 1)
        change += _change(problem, p, ablation, last)
    attributed = float(scores.result()[: t.graph.n_inputs].sum())
    error = abs(attributed - change) / max(abs(change), 1e-12)
    return [_found(problem, scores, {"forward": 2, "forward_backward": steps}, {"completeness_error": error})]


def score_eap_ig_activations(problem: Problem, progress: Progress, *, steps: int) -> list[Found]:
    _require_gradient(problem)
    t = problem.t
    scores = _edge_scores(problem)
    units = _sublayers(t)
    progress.phase("attribution", len(problem.prompts) * len(units) * steps)
    done = 0
    for p in problem.prompts:
        clean, ablation, _ = _later(t, p)
        differences = clean.minus(ablation)
        for unit in units:
            for alpha in _path(problem, steps):
                watcher = _OnPath(unit, clean, ablation, alpha)
                gradients, _ = gradients_at_receivers(t, watcher.inputs, problem.mean_of(p), watcher, p.prefix)
                scores.add(p.batch, differences, gradients, 1.0 / steps, unit.senders)
                done += 1
                progress.step(done)
    return [_found(problem, scores, {"forward": 2, "forward_backward": steps * len(units)}, {})]


def _later(t: Transformer, p: Prompts) -> tuple[NodeOutputs, NodeOutputs, Tensor]:
    """After the prefix of a batch: the clean run, the ablation values, and the clean run's last residual."""
    clean, last = record_from(t, p.prefix.later(p.inputs), p.prefix)
    return clean, p.ablation.mapped(p.prefix.later), last


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


def _path(problem: Problem, steps: int) -> list[float]:
    shift = 0.5 if problem.objective.name == "kl_divergence" else 0.0
    return [(k - shift) / steps for k in range(1, steps + 1)]


@torch.no_grad()
def _change(problem: Problem, p: Prompts, ablation: NodeOutputs, last: Tensor) -> float:
    """m(clean) - m(embeddings ablated), this batch's part. ablation, last: as `_later` gives them."""
    inputs = ablation.inputs.expand(-1, *last.shape)
    ablated = run_plain(problem.t, inputs, Ignore(), p.prefix)
    return float(problem.mean_of(p)(last) - problem.mean_of(p)(ablated))


def _require_gradient(problem: Problem) -> None:
    if not problem.objective.has_gradient:
        raise TaskError(f"{problem.objective.name} has no gradient; use logit_diff, or the methods exact and acdc")


def _edge_scores(problem: Problem) -> EdgeScores:
    keeps = not _why_no_examples(problem)
    return EdgeScores(problem.t, problem.memory_bytes, problem.n_examples if keeps else 0)


def _why_no_examples(problem: Problem) -> str:
    """Empty where every example's own scores are kept."""
    if not problem.keep_examples:
        return "per-example scores were not asked for"
    n, n_edges = problem.n_examples, problem.t.graph.n_edges
    needed = n * bytes_per_example(problem.t.graph)
    if needed <= EXAMPLES_SHARE * problem.memory_bytes:
        return ""
    return (
        f"the scores of {n_edges:,} edges on each of {n:,} prompts take {needed:,} bytes, more than "
        f"{EXAMPLES_SHARE:.0%} of compute.memory_bytes ({problem.memory_bytes:,}): raise it to "
        f"{math.ceil(needed / EXAMPLES_SHARE):,} or search on fewer prompts"
    )


def _found(problem: Problem, scores: EdgeScores, passes: dict[str, float], facts: dict[str, float]) -> Found:
    own = scores.per_example()
    return Found(
        scores.result().float().cpu().numpy(),
        problem.t.graph.legal.copy(),
        passes=passes,
        facts=facts,
        per_example=None if own is None else own.cpu().numpy(),
        why_no_examples=_why_no_examples(problem),
    )
