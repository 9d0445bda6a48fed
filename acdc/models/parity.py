"""Does our forward give the model's own logits? Checked at load, clean and corrupt, and stored with the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.errors import BadWeights, ParityFailed
from acdc.models.transformer import Transformer, as_found
from acdc.patching.forward import record
from acdc.patching.masked import run_masked

# float64 is no tighter than this because the RMS norms of Hugging Face models go through float32.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Parity:
    """Largest |logit difference| relative to the range of the model's own logits, by check."""

    plain: float
    all_kept: float
    all_cut: float

    @property
    def worst(self) -> float:
        return max(self.plain, self.all_kept, self.all_cut)


@torch.no_grad()
def check_parity(t: Transformer, clean: Tensor, corrupt: Tensor) -> Parity:
    """Compare the plain forward, the all-ones and the all-zeros masked forward with the model's own.

    clean, corrupt: tokens [batch, pos]. Raises ParityFailed naming the check that failed, BadWeights for NaN logits.
    """
    with as_found(t.module):
        wanted, wanted_corrupt = t.module(clean).logits, t.module(corrupt).logits
        if not (wanted.isfinite().all() and wanted_corrupt.isfinite().all()):
            raise BadWeights("the model's own logits are not finite numbers: its weights are damaged")
        kept, last = record(t, clean)
        cut, _ = record(t, corrupt)
        masks = torch.stack([torch.full(t.graph.legal.shape, fill, device=t.device) for fill in (1.0, 0.0)])
        masked = t.unembed(run_masked(t, kept.inputs, cut, masks))
        parity = Parity(
            plain=_distance(t.unembed(last), wanted),
            all_kept=_distance(masked[0], wanted),
            all_cut=_distance(masked[1], wanted_corrupt),
        )
    tolerance = TOLERANCE[t.dtype]
    for name, value in (
        ("plain", parity.plain),
        ("all-ones mask", parity.all_kept),
        ("all-zeros mask", parity.all_cut),
    ):
        if not value <= tolerance:
            raise ParityFailed(
                f"the {name} forward of this {t.architecture} model differs from its own by {value:.2e} of the logits' "
                f"range (allowed: {tolerance:.0e}): a feature of the model is not described, so it is refused"
            )
    return parity


def probe_tokens(t: Transformer, length: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random clean and corrupt tokens for the check at load: [2, length] each."""
    generator = torch.Generator().manual_seed(seed)
    length = min(length, t.max_positions or length)
    tokens = torch.randint(t.vocab_size, (2, 2, length), generator=generator).to(t.device)
    return tokens[0], tokens[1]


def _distance(ours: Tensor, wanted: Tensor) -> float:
    spread = (wanted.max() - wanted.min()).item()
    return (ours - wanted).abs().max().item() / max(spread, 1e-30)
