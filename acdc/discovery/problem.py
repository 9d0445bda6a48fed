"""What every method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from acdc.circuit import Scores
from acdc.errors import ModelError
from acdc.graph import BoolMatrix
from acdc.metrics import Metric
from acdc.models.transformer import Transformer
from acdc.patching.circuits import PerExample, Prompts, measure, n_examples
from acdc.patching.masked import bytes_per_token
from acdc.patching.readout import bytes_of_logits


@dataclass(frozen=True)
class Problem:
    """A model, the prompts to search on (with their ablation values), and the objective: higher is better.

    keep_examples: whether a method that can should also give the scores that each example has by itself. groups: of
    each example by its number, for methods that draw examples again; empty where each is a group of its own.
    """

    t: Transformer
    prompts: Sequence[Prompts]
    objective: Metric
    memory_bytes: int
    keep_examples: bool = False
    groups: tuple[str, ...] = ()

    @property
    def n_examples(self) -> int:
        return n_examples(self.prompts)

    def of(self, examples: Sequence[int]) -> Problem:
        """The same on some of the examples."""
        parts = (p.narrowed(examples) for p in self.prompts)
        groups = tuple(self.groups[example] for example in examples) if self.groups else ()
        return replace(self, prompts=[p for p in parts if p is not None], groups=groups)

    def mean_of(self, p: Prompts) -> Callable[[Tensor], Tensor]:
        """Last residual [row, positions after the prefix, d] -> this batch's part of the objective's mean over all
        examples."""

        def objective(residual: Tensor) -> Tensor:
            logits = self.t.unembed(p.read(residual))
            return self.objective(logits, p.batch, p.clean_logprobs).sum() / self.n_examples

        return objective

    def bytes_of_forward(self, p: Prompts) -> int:
        """What a whole masked forward of one circuit holds on a batch, with the logits that the objective reads."""
        tokens, reads = p.batch.n_rows * p.batch.length, len(p.batch.read_row)
        return tokens * bytes_per_token(self.t) + reads * bytes_of_logits(self.t)

    def measure(self, masks: Tensor) -> PerExample:
        """The objective of every circuit on every example. masks: [circuit, senders, receivers]"""
        return measure(self.t, self.prompts, masks, [self.objective], self.memory_bytes)[self.objective.name]

    def mean_with(self, kept: BoolMatrix) -> float:
        """The objective's mean over examples with only these edges [senders, receivers], by one whole masked forward of
        a shape that nothing but the prompts decides."""
        return float(self.measure(torch.from_numpy(kept[None].astype(np.float32)))[0].mean())

    def require_finite(self, value: float | PerExample, receiver: int) -> None:
        """value: the objective of a circuit that lacks edges into a receiver. Raises ModelError."""
        if not np.isfinite(value).all():
            raise ModelError(
                f"the objective {self.objective.name} of a circuit without edges into "
                f"{self.t.graph.receivers[receiver].name} is not a finite number: use dtype float32 or another "
                "ablation, or check the weights"
            )

    def full_mask(self) -> Tensor:
        """[senders, receivers], 1 at every legal edge."""
        return torch.from_numpy(self.t.graph.legal.copy()).to(self.t.dtype)


@dataclass(frozen=True)
class Found:
    """scores: [senders, receivers], 0 where not tested. kept: for methods that decide themselves, the circuit.

    key: names this result among those of one search. passes: forward and backward passes over all prompts, by kind.
    facts: numbers that a reader of the scores should know, such as the completeness error of integrated gradients.
    per_example: float32 [n_examples, n_edges], edges in the graph's order: scores whose mean over examples is `scores`;
    where there are none, why_no_examples says why. notes: what a reader must know of how it was found. label: what the
    method is called where it did not run in its plain form.
    """

    scores: Scores
    tested: BoolMatrix
    kept: BoolMatrix | None = None
    key: str = "circuit"
    passes: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    per_example: Scores | None = None
    why_no_examples: str = "the method gives no per-example scores"
    notes: tuple[str, ...] = ()
    label: str = ""

    @property
    def is_ranking(self) -> bool:
        """Whether the scores put the edges in an order: what edges cost while a search decided on them does not."""
        return self.kept is None


def add_scores(parts: Sequence[Found]) -> Found:
    """Scores of one method under several objectives, added after dividing each by the sum of its sizes.

    A circuit chosen by one objective alone can be broken everywhere else: by logit difference it may push up the right
    answer and ruin the rest of the distribution, by KL it may keep the distribution and lose the answer. Where the
    method is linear in its objective, as attribution is, this is attribution of the objectives' weighted sum. Scores
    per example are divided by the same sums, those over all examples, so that their mean stays the scores.
    """
    sizes = [max(float(np.abs(part.scores).sum()), 1e-30) for part in parts]
    shares = [part.scores / size for part, size in zip(parts, sizes, strict=True)]
    passes: dict[str, float] = {}
    for part in parts:
        for kind, count in part.passes.items():
            passes[kind] = passes.get(kind, 0.0) + count
    facts = {f"{name} ({i + 1})": value for i, part in enumerate(parts) for name, value in part.facts.items()}
    return replace(
        parts[0],
        scores=sum(shares[1:], shares[0]),
        passes=passes,
        facts=facts,
        per_example=_add_examples(parts, sizes),
    )


def _add_examples(parts: Sequence[Found], sizes: Sequence[float]) -> Scores | None:
    """Into one new array, as each of them may be large."""
    total: Scores | None = None
    for part, size in zip(parts, sizes, strict=True):
        if part.per_example is None:
            return None
        if total is None:
            total = np.zeros_like(part.per_example)
        for own, row in zip(total, part.per_example, strict=True):
            own += row / np.float32(size)
    return total
