"""The positions at the beginning of prompts that no circuit changes.

Under a causal mask, where every sender's clean output equals its ablation value at all positions before p, every
circuit leaves them as they are, and no difference is found there: pairs that first differ late in the prompt need
masked forwards, and gradients, of the rest alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.models.transformer import Transformer
from acdc.patching.forward import NodeOutputs, Prefix, Recorder, run_plain


class _ReadsToo(Recorder):
    def __init__(self, t: Transformer) -> None:
        super().__init__()
        self.n_heads, self.read_by_layer = t.n_heads, list[Tensor]()

    def read(self, layer: int, x: Tensor, projected: Tensor) -> Tensor:
        self.read_by_layer.append(projected[:, :, self.n_heads :])
        return projected


@torch.no_grad()
def run_clean(t: Transformer, inputs: Tensor, ablation: NodeOutputs, first_read: int) -> tuple[Tensor, Prefix]:
    """inputs: [n_inputs, row, pos, d]. first_read: the first position that is read. The last residual [row, pos, d] of
    the clean run, and its prefix."""
    recorder = _ReadsToo(t)
    last = run_plain(t, inputs, recorder)
    if not t.is_causal:
        return last, Prefix()
    start = min(first_read, _first_difference(recorder.outputs(inputs), ablation))
    if not start:
        return last, Prefix()
    keys, values = [], []
    rope = t.rope(inputs[0])
    for layer, read in zip(t.layers, recorder.read_by_layer, strict=True):
        k, v = read[:, :start].transpose(1, 2).split((t.n_kv_heads, t.n_kv_heads), 1)
        keys.append(t.turn(layer, layer.head_norm_k, k, rope).clone())
        values.append(v.clone())
    return last, Prefix(start, keys, values)


def _first_difference(clean: NodeOutputs, ablation: NodeOutputs) -> int:
    """The first position at which any sender's output differs from its ablation value."""
    pairs = zip((*clean.inputs, *clean.z, *clean.mlp), (*ablation.inputs, *ablation.z, *ablation.mlp), strict=True)
    return min(_first_true((a != b).any(-1).any(0)) for a, b in pairs)


def _first_true(flags: Tensor) -> int:
    where = torch.nonzero(flags)
    return int(where[0, 0]) if len(where) else len(flags)
