"""Problems on tiny models, and the gradient of their metric with respect to the mask, by autograd: what attribution is
judged by."""

from __future__ import annotations

import torch
from tiny_transformers import random_pairs, tiny
from torch import Tensor

from acdc.discovery.problem import Problem
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.patching.ablation import ablation_of
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.patching.masked import run_masked

MEMORY = 2**30


def make_problem(
    name: str,
    *,
    ablation: str = "resample",
    metric: str = "logit_diff",
    lengths: tuple[int, ...] = (6,),
    n: int = 4,
    roles: tuple[str, ...] | None = None,
) -> Problem:
    """roles: that edges are split by, beside `end` and `other`."""
    t = wrap(tiny(name)) if roles is None else wrap(tiny(name)).split_by(roles)
    batches = make_batches(t, random_pairs(n, lengths), 512, MEMORY)
    values = ablation_of(ablation, t, batches, mean_per_role=True)
    return Problem(t, prepare(t, batches, values), METRICS[metric], MEMORY)


def mask_gradient(problem: Problem, mask: Tensor) -> Tensor:
    """dm/dM at `mask`, by autograd through the masked forward."""
    mask = mask.double().requires_grad_(True)
    total = sum(
        problem.mean_of(p)(run_masked(problem.t, p.inputs, p.ablation, mask[None], p.prefix, p.roles)[0])
        for p in problem.prompts
    )
    assert isinstance(total, Tensor)
    (gradient,) = torch.autograd.grad(total, mask)
    return gradient * problem.full_mask()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
