"""What the gradient methods share: the runs they differentiate, the path they integrate over, what they give back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from acdc.discovery.problem import Found, Problem
from acdc.errors import TaskError
from acdc.models.transformer import Transformer
from acdc.patching.circuits import Prompts
from acdc.patching.forward import NodeOutputs, Watcher, record_from, run_plain
from acdc.patching.gradients import EdgeScores, bytes_per_example, gradients_at_receivers
from acdc.progress import Progress

EXAMPLES_SHARE = 0.25  # of memory_bytes, for the scores per example of one objective


def require_gradient(problem: Problem) -> None:
    if not problem.objective.has_gradient:
        raise TaskError(f"{problem.objective.name} has no gradient; use logit_diff, or the methods exact and acdc")


def require_slope_at_clean(problem: Problem, method: str) -> None:
    """For methods that differentiate at the clean run itself. Raises TaskError."""
    require_gradient(problem)
    if problem.objective.name == "kl_divergence":
        raise TaskError(f"{method} cannot use kl_divergence: its gradient at the clean run is zero; use eap-ig-inputs")


def score_at_clean(problem: Problem, progress: Progress) -> list[Found]:
    """score[s, r] = <out_s - a_s, gradient at input_r> at the clean run, by the problem's transformer."""
    scores = edge_scores(problem)
    progress.phase("attribution", len(problem.prompts))
    for done, p in enumerate(problem.prompts):
        clean, ablation, _ = run_clean_again(problem.t, p)
        gradients, _ = gradients_at_receivers(problem.t, clean.inputs, problem.mean_of(p), prefix=p.prefix)
        scores.add(p.batch, clean.minus(ablation), gradients, 1.0)
        progress.step(done + 1)
    return [found_by(problem, scores, {"forward": 2, "forward_backward": 1}, {})]


def run_clean_again(t: Transformer, p: Prompts) -> tuple[NodeOutputs, NodeOutputs, Tensor]:
    """After the prefix of a batch: the clean run, the ablation values, and the clean run's last residual."""
    clean, last = record_from(t, p.prefix.later(p.inputs), p.prefix)
    return clean, p.ablation.mapped(p.prefix.later), last


def path_of(problem: Problem, steps: int) -> list[float]:
    shift = 0.5 if problem.objective.name == "kl_divergence" else 0.0
    return [(k - shift) / steps for k in range(1, steps + 1)]


@torch.no_grad()
def change_from(problem: Problem, p: Prompts, inputs: Tensor, watcher: Watcher, last: Tensor) -> float:
    """m(clean) - m(another run), this batch's part. inputs, watcher: of the other run, as `run_plain` takes them. last:
    the clean run's residual, as `run_clean_again` gives it."""
    other = run_plain(problem.t, inputs.expand(-1, *last.shape), watcher, p.prefix)
    return float(problem.mean_of(p)(last) - problem.mean_of(p)(other))


def completeness_error(attributed: float, change: float) -> float:
    """Of scores that should add up to a change of the metric: how far they are from it, over it."""
    return abs(attributed - change) / max(abs(change), 1e-12)


def edge_scores(problem: Problem) -> EdgeScores:
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


def found_by(problem: Problem, scores: EdgeScores, passes: dict[str, float], facts: dict[str, float]) -> Found:
    own = scores.per_example()
    return Found(
        scores.result().float().cpu().numpy(),
        problem.t.graph.legal.copy(),
        passes=passes,
        facts=facts,
        per_example=None if own is None else own.cpu().numpy(),
        why_no_examples=_why_no_examples(problem),
    )
