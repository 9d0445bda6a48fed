"""What methods that train masks share: an optimizer whose memory is saved, and draws that a resumed search repeats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from acdc.discovery.problem import Problem
from acdc.patching.circuits import Prompts
from acdc.progress import Checkpoint


def adam(parameter: Tensor, rate: float, *, maximize: bool = False) -> torch.optim.Adam:
    """With what it remembers there from the start, to be loaded into."""
    optimizer = torch.optim.Adam([parameter], lr=rate, maximize=maximize)
    zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
    return optimizer


def remembered(name: str, parameter: Tensor, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """A parameter and all that its optimizer knows of it, by names."""
    return {name: parameter, **{f"{name}.{part}": value for part, value in optimizer.state[parameter].items()}}


def saved(step: int, tensors: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(step, arrays={name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})


@torch.no_grad()
def load(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Into the tensors, as `saved` took them."""
    for name, tensor in tensors.items():
        tensor.copy_(torch.from_numpy(np.array(checkpoint.arrays[name])))


def draws_of(seed: int, step: int) -> np.random.SeedSequence:
    """Random numbers that hang on the seed and the step (from -1 on) alone, so that a resumed search draws what it
    would have drawn."""
    return np.random.SeedSequence((seed, step + 1))


def drawn_batch(problem: Problem, draws: np.random.Generator) -> Prompts:
    """One batch, in proportion to its examples, so that each example weighs the same however they were batched."""
    sizes = np.array([len(p.batch.examples) for p in problem.prompts])
    return problem.prompts[int(draws.choice(len(sizes), p=sizes / sizes.sum()))]
