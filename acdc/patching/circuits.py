"""Metrics of circuits: prompts, ablation values and the clean run's predictions, ready for many masked forwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acdc.errors import OutOfMemory
from acdc.metrics import Metric, in_full_precision
from acdc.models.transformer import Transformer
from acdc.patching.ablation import Ablation
from acdc.patching.batches import Batch
from acdc.patching.forward import NodeOutputs, Prefix, record
from acdc.patching.masked import circuit_tiles, run_masked
from acdc.patching.prefix import run_clean
from acdc.patching.sizes import prepared_streams

PerExample = npt.NDArray[np.float64]  # [circuit, example]


@dataclass(frozen=True)
class Prompts:
    """One batch with all that a masked forward on it needs. clean_logprobs: [example, vocab] right after the prompt.
    roles: of every token [row, pos], where edges are split by them."""

    batch: Batch
    inputs: Tensor
    ablation: NodeOutputs
    clean_logprobs: Tensor
    prefix: Prefix = field(default_factory=Prefix)
    roles: Tensor | None = None

    def narrowed(self, examples: Sequence[int]) -> Prompts | None:
        """Only these examples, numbered as they stand there; None where none of them is here."""
        number = {example: place for place, example in enumerate(examples)}
        local = [place for place, example in enumerate(self.batch.examples) if example in number]
        if not local:
            return None
        batch, rows = self.batch.narrowed(local)
        batch = replace(batch, examples=tuple(number[example] for example in batch.examples))
        ablation, prefix = self.ablation.of_rows(rows), self.prefix.of_rows(rows)
        roles = None if self.roles is None else self.roles[rows]
        return Prompts(batch, self.inputs[:, rows], ablation, self.clean_logprobs[local], prefix, roles)

    def run(self, t: Transformer, masks: Tensor) -> Tensor:
        """What is read of every circuit: last residuals [circuit, read, d]. masks: [circuit, senders, receivers]"""
        return self.read(run_masked(t, self.inputs, self.ablation, masks, self.prefix, self.roles))

    def read(self, last: Tensor) -> Tensor:
        """[..., row, positions after the prefix, d] -> what is read of it [..., read, d]"""
        return self.batch.take(last, self.prefix.start)


def require_memory(t: Transformer, batches: Sequence[Batch], limit_bytes: int) -> None:
    """Refuse, before any computing, prompts whose prepared runs cannot fit. Raises OutOfMemory with the numbers."""
    streams = prepared_streams(t.graph, t.n_heads * t.d_head / t.d_model)
    tokens = sum(batch.n_rows * batch.length for batch in batches)
    examples = sum(len(batch.examples) for batch in batches)
    needed = int(tokens * streams * t.d_model * t.dtype.itemsize) + examples * t.vocab_size * 8
    if needed > limit_bytes:
        raise OutOfMemory(
            f"{examples:,} prompts of this model need {needed:,} bytes for their clean and ablated runs; the machine "
            f"has {limit_bytes:,}: ask for fewer prompts"
        )


@torch.no_grad()
def prepare(t: Transformer, batches: Sequence[Batch], ablation: Ablation) -> list[Prompts]:
    """Run every batch once clean (and once corrupt for resample). Holds 2 residual streams a layer and prompt."""
    prepared = []
    for batch in batches:
        inputs, values = t.embed(batch.clean), ablation.values(t, batch)
        last, prefix = run_clean(t, inputs, values, int(batch.read_pos.min()))
        logits = t.unembed(batch.take(last))[batch.first_read]
        logprobs = in_full_precision(logits).log_softmax(-1)
        roles = batch.numbered_roles(t.graph.shape.roles) if t.graph.shape.roles else None
        prepared.append(Prompts(batch, inputs, values, logprobs, prefix, roles))
    return prepared


def n_examples(prompts: Sequence[Prompts]) -> int:
    return sum(len(p.batch.examples) for p in prompts)


@torch.no_grad()
def measure(
    t: Transformer,
    prompts: Sequence[Prompts],
    masks: Tensor,
    metrics: Sequence[Metric],
    memory_bytes: int,
) -> Mapping[str, PerExample]:
    """Every metric of every circuit on every example: name -> [circuit, example], examples in their own numbering.

    masks: [circuit, senders, receivers] in [0, 1].
    """
    results = {m.name: np.zeros((len(masks), n_examples(prompts))) for m in metrics}
    for p in prompts:
        examples = list(p.batch.examples)
        n_later = p.batch.length - p.prefix.start
        for circuits in circuit_tiles(t, len(masks), p.batch.n_rows, n_later, memory_bytes):
            last = p.run(t, masks[circuits].to(t.device))
            for number, residual in zip(range(circuits.start, circuits.stop), last, strict=True):
                logits = in_full_precision(t.unembed(residual))
                for metric in metrics:
                    values = metric(logits, p.batch, p.clean_logprobs)
                    results[metric.name][number, examples] = values.cpu().numpy()
    return results


def measure_corrupt(t: Transformer, prompts: Sequence[Prompts], metrics: Sequence[Metric]) -> Mapping[str, PerExample]:
    """Every metric of the model itself on the corrupt prompts: name -> [1, example]."""
    results = {m.name: np.zeros((1, n_examples(prompts))) for m in metrics}
    with torch.no_grad():
        for p in prompts:
            logits = t.unembed(p.batch.take(record(t, p.batch.corrupt)[1]))
            for metric in metrics:
                values = metric(logits, p.batch, p.clean_logprobs)
                results[metric.name][0, list(p.batch.examples)] = values.cpu().numpy()
    return results
