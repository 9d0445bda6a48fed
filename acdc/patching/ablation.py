"""Ablation values: what a cut edge carries.

resample: what the sender wrote in the corrupt run. zero: nothing. mean: its mean over the clean prompts of a reference
set, per position role where a position has one, else over all positions. Every mean weighs positions of examples alike,
whatever the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from acdc.models.transformer import Transformer
from acdc.patching.batches import Batch
from acdc.patching.forward import NodeOutputs, record


class Ablation(Protocol):
    def values(self, t: Transformer, batch: Batch) -> NodeOutputs:
        """What every sender's cut edges carry, for the rows of a batch."""


@dataclass(frozen=True)
class Resample:
    def values(self, t: Transformer, batch: Batch) -> NodeOutputs:
        return record(t, batch.corrupt)[0]


@dataclass(frozen=True)
class Zero:
    def values(self, t: Transformer, batch: Batch) -> NodeOutputs:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=t.dtype, device=t.device)

        n_mlps = t.n_layers if t.graph.shape.has_mlp else 0
        return NodeOutputs(
            zeros(t.graph.n_inputs, 1, 1, t.d_model),
            [zeros(1, 1, t.n_heads * t.d_head)] * t.n_layers,
            [zeros(1, 1, t.d_model)] * n_mlps,
        )


@dataclass(frozen=True)
class Mean:
    """overall: the mean over all positions; by_role: per role. Made by `mean_over`."""

    overall: NodeOutputs
    by_role: dict[str, NodeOutputs]

    def values(self, t: Transformer, batch: Batch) -> NodeOutputs:
        names = ["", *self.by_role]
        means = [self.overall, *self.by_role.values()]
        index = torch.tensor(
            [[names.index(role) if role in self.by_role else 0 for role in row] for row in batch.roles], device=t.device
        )  # [row, pos]

        def spread(values: list[Tensor]) -> Tensor:  # each [..., 1, 1, n] -> [..., row, pos, n]
            return torch.cat(values, -2)[..., 0, :, :][..., index, :]

        return NodeOutputs(
            spread([m.inputs for m in means]),
            [spread([m.z[layer] for m in means]) for layer in range(t.n_layers)],
            [spread([m.mlp[layer] for m in means]) for layer in range(len(self.overall.mlp))],
        )


@torch.no_grad()
def mean_over(t: Transformer, batches: Sequence[Batch], *, per_role: bool) -> Mean:
    """The mean ablation whose reference set is the clean prompts of `batches`."""
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        outputs, _ = record(t, batch.clean)
        flat = [outputs.inputs.movedim(0, 2), *outputs.z, *outputs.mlp]  # each [row, pos, ...]
        prompts = batch.prompt_positions()
        roles = [[role if per_role else "" for role in row] for row in batch.roles]
        for role in sorted({name for row in roles for name in row} | {""}):
            chosen = prompts & torch.tensor([[role in ("", name) for name in row] for row in roles], device=t.device)
            totals = [x[chosen].double().sum(0) for x in flat]
            sums[role] = [a + b for a, b in zip(sums[role], totals, strict=True)] if role in sums else totals
            counts[role] = counts.get(role, 0) + int(chosen.sum())
    means = {role: _unflatten(t, [total / counts[role] for total in totals]) for role, totals in sums.items()}
    overall = means.pop("")
    return Mean(overall, means)


def ablation_of(kind: str, t: Transformer, reference: Sequence[Batch], *, mean_per_role: bool) -> Ablation:
    """By the name that specs use. reference: whose clean prompts a mean is over."""
    match kind:
        case "resample":
            return Resample()
        case "zero":
            return Zero()
        case "mean":
            return mean_over(t, reference, per_role=mean_per_role)
        case _:
            raise AssertionError(f"unknown ablation {kind}")


def _unflatten(t: Transformer, totals: list[Tensor]) -> NodeOutputs:
    inputs, rest = totals[0], [x[None, None].to(t.dtype) for x in totals[1:]]
    return NodeOutputs(inputs[:, None, None].to(t.dtype), rest[: t.n_layers], rest[t.n_layers :])
