"""Pairs of prompts as tensors: bucketed by length, never padded on the left, each mean weighing examples.

An answer of several tokens is teacher-forced: each such alternative becomes a row of its own, the prompt followed by
all of its tokens but the last. Rows of one example are filled up on the right to a common length; under a causal mask
the filling changes nothing that is read.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from acdc.errors import Fault, TaskError
from acdc.graph import END, OTHER
from acdc.models.transformer import Transformer
from acdc.patching.masked import tokens_that_fit
from acdc.tasks.prompts import Pair, Tokens

_Steps = list[list[tuple[int, int]]]  # per alternative, per token of it: (read, token)


class TakesTokens(Protocol):
    """What the pairs of a task are checked against."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int | None: ...

    @property
    def is_causal(self) -> bool: ...


@dataclass(frozen=True)
class Alternatives:
    """Possible answers of each example, padded: read: index into the batch's reads, token: vocabulary id, both
    [example, alternative, step]; real: where a step exists."""

    read: Tensor
    token: Tensor
    real: Tensor

    @property
    def exists(self) -> Tensor:
        """[example, alternative]"""
        return self.real[..., 0]


@dataclass(frozen=True)
class Batch:
    """examples: their numbers in the prompt set. clean, corrupt: tokens [row, pos]. A read is a place whose logits are
    needed, read_row and read_pos: [read]. first_read: each example's read right after its prompt, [example].
    roles: per row, the role of each position ("" where it has none)."""

    examples: tuple[int, ...]
    clean: Tensor
    corrupt: Tensor
    read_row: Tensor
    read_pos: Tensor
    first_read: Tensor
    right: Alternatives
    wrong: Alternatives
    single_token: bool
    roles: tuple[tuple[str, ...], ...]

    @property
    def length(self) -> int:
        return self.clean.shape[1]

    @property
    def n_rows(self) -> int:
        return self.clean.shape[0]

    @property
    def first_row(self) -> Tensor:
        """[example]: where its rows begin. They are neighbours, and examples follow each other."""
        return self.read_row[self.first_read]

    @functools.cached_property
    def all_have_wrong(self) -> bool:
        """Whether every example has a wrong answer. Asked once: on a GPU the answer has to be waited for."""
        return bool(self.wrong.exists.any(1).all())

    def prompt_positions(self) -> Tensor:
        """[row, pos], true at the prompt itself of one row an example: no answers, no filling, no example twice."""
        ends = self.read_pos[self.first_read]
        chosen = torch.zeros_like(self.clean, dtype=torch.bool)
        chosen[self.first_row] = torch.arange(self.length, device=self.clean.device)[None] <= ends[:, None]
        return chosen

    def numbered_roles(self, roles: Sequence[str]) -> Tensor:
        """[row, pos]: the number of each token's role among `roles`. Those of no role, or of none of these, are
        `other`; a prompt's last token and all after it are `end`, whatever else they are called."""
        numbers = {role: number for number, role in enumerate(roles)}
        found = torch.tensor([[numbers.get(role, numbers[OTHER]) for role in row] for row in self.roles])
        first = [*self.first_row.tolist(), self.n_rows]
        ends = self.read_pos[self.first_read].tolist()
        for (start, stop), end in zip(itertools.pairwise(first), ends, strict=True):
            found[start:stop, end:] = numbers[END]
        return found.to(self.clean.device)

    def narrowed(self, places: Sequence[int]) -> tuple[Batch, Tensor]:
        """Only the examples at these places, and which rows [row] that leaves."""
        right, wrong = (_of_examples(answers, places) for answers in (self.right, self.wrong))
        first = self.first_read[list(places)]
        reads = torch.unique(torch.cat((right.read[right.real], wrong.read[wrong.real], first)))
        rows = torch.unique(self.read_row[reads])
        found = Batch(
            examples=tuple(self.examples[place] for place in places),
            clean=self.clean[rows],
            corrupt=self.corrupt[rows],
            read_row=torch.searchsorted(rows, self.read_row[reads]),
            read_pos=self.read_pos[reads],
            first_read=torch.searchsorted(reads, first),
            right=replace(right, read=torch.searchsorted(reads, right.read).clamp(max=len(reads) - 1)),
            wrong=replace(wrong, read=torch.searchsorted(reads, wrong.read).clamp(max=len(reads) - 1)),
            single_token=self.single_token,
            roles=tuple(self.roles[int(row)] for row in rows),
        )
        return found, rows

    def take(self, residual: Tensor, first: int = 0) -> Tensor:
        """[..., row, positions from `first` on, d] -> [..., read, d]"""
        return residual[..., self.read_row, self.read_pos - first, :]


def make_batches(t: Transformer, pairs: Sequence[Pair], batch_tokens: int, memory_bytes: int) -> list[Batch]:
    """Bucket by length, in the order of `pairs` within a bucket; at most `batch_tokens` tokens a batch (but always one
    example), and no more than the masked forward can hold in `memory_bytes`. So batches depend on the spec and the
    model's shape alone. Raises TaskError with every pair that this model cannot take, OutOfMemory."""
    check_pairs(t, pairs)
    longest = max((len(pair.clean) + _extra(pair)) * len(_continuations(pair)) for pair in pairs)
    return bucket_pairs(t, pairs, min(batch_tokens, tokens_that_fit(t, longest, memory_bytes)))


def bucket_pairs(t: TakesTokens, pairs: Sequence[Pair], batch_tokens: int) -> list[Batch]:
    """The same for a model of which no more is known than the tokens it takes. Raises TaskError."""
    check_pairs(t, pairs)
    buckets: dict[int, list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        buckets[len(pair.clean) + _extra(pair)].append(index)
    batches = []
    for length in sorted(buckets):
        chunk: list[int] = []
        n_rows = 0
        for index in buckets[length]:
            rows = len(_continuations(pairs[index]))
            if chunk and (n_rows + rows) * length > batch_tokens:
                batches.append(_batch(t, pairs, chunk, length))
                chunk, n_rows = [], 0
            chunk.append(index)
            n_rows += rows
        batches.append(_batch(t, pairs, chunk, length))
    return batches


def check_pairs(t: TakesTokens, pairs: Sequence[Pair]) -> None:
    """Raises TaskError naming every pair that is empty, too long, uneven or out of the vocabulary."""
    faults = []
    for index, pair in enumerate(pairs):
        tokens = {*pair.clean, *pair.corrupt, *(i for answer in (*pair.answers, *pair.wrong) for i in answer)}
        where = f"pair {index + 1}"
        if len(pair.clean) != len(pair.corrupt) or not pair.clean:
            faults.append(
                Fault(where, f"clean has {len(pair.clean)} tokens, corrupt {len(pair.corrupt)}: make them equal")
            )
        if t.max_positions and len(pair.clean) + _extra(pair) > t.max_positions:
            faults.append(Fault(where, f"{len(pair.clean)} tokens; this model takes {t.max_positions}"))
        if tokens and max(tokens) >= t.vocab_size:
            faults.append(Fault(where, f"token {max(tokens)}; this model's vocabulary has {t.vocab_size}"))
        if not t.is_causal and _extra(pair):
            faults.append(Fault(where, "an answer of several tokens needs a causal model; this one is bidirectional"))
    if not pairs:
        faults.append(Fault("", "there are no prompts"))
    if faults:
        raise TaskError(f"{len(faults)} of {len(pairs)} pairs do not work with this model", faults)


def _extra(pair: Pair) -> int:
    """Tokens that the longest alternative adds to the prompt."""
    return max(len(tokens) for tokens in (*pair.answers, *pair.wrong)) - 1


def _continuations(pair: Pair) -> list[Tokens]:
    """The distinct rows of an example, as what follows the prompt in each; one-token answers share the bare prompt."""
    return sorted({tokens[:-1] for tokens in (*pair.answers, *pair.wrong)}, key=lambda tokens: (len(tokens), tokens))


def _batch(t: TakesTokens, pairs: Sequence[Pair], chunk: Sequence[int], length: int) -> Batch:
    clean: list[list[int]] = []
    corrupt: list[list[int]] = []
    roles: list[tuple[str, ...]] = []
    reads: dict[tuple[int, int], int] = {}
    first_read: list[int] = []
    right: list[_Steps] = []
    wrong: list[_Steps] = []
    for index in chunk:
        pair = pairs[index]
        rows = {}
        for tokens in _continuations(pair):
            rows[tokens] = len(clean)
            filling = (pair.clean[-1],) * (length - len(pair.clean) - len(tokens))
            clean.append([*pair.clean, *tokens, *filling])
            corrupt.append([*pair.corrupt, *tokens, *filling])
            roles.append(_roles(pair, length))
        end = len(pair.clean) - 1
        first_read.append(reads.setdefault((next(iter(rows.values())), end), len(reads)))
        for kind, alternatives in ((right, pair.answers), (wrong, pair.wrong)):
            kind.append(
                [
                    [(reads.setdefault((rows[a[:-1]], end + step), len(reads)), token) for step, token in enumerate(a)]
                    for a in alternatives
                ]
            )
    places = torch.tensor(list(reads), device=t.device)
    return Batch(
        examples=tuple(chunk),
        clean=torch.tensor(clean, device=t.device),
        corrupt=torch.tensor(corrupt, device=t.device),
        read_row=places[:, 0],
        read_pos=places[:, 1],
        first_read=torch.tensor(first_read, device=t.device),
        right=_alternatives(right, t.device),
        wrong=_alternatives(wrong, t.device),
        single_token=all(len(a) == 1 for index in chunk for a in (*pairs[index].answers, *pairs[index].wrong)),
        roles=tuple(roles),
    )


def _of_examples(answers: Alternatives, places: Sequence[int]) -> Alternatives:
    chosen = list(places)
    return Alternatives(answers.read[chosen], answers.token[chosen], answers.real[chosen])


def _roles(pair: Pair, length: int) -> tuple[str, ...]:
    roles = [""] * length
    for name, (start, stop) in sorted(pair.roles.items()):
        for position in range(start, min(stop, length)):
            roles[position] = name
    return tuple(roles)


def _alternatives(steps: list[_Steps], device: torch.device) -> Alternatives:
    most = max((len(example) for example in steps), default=0) or 1
    longest = max((len(a) for example in steps for a in example), default=1)
    table = torch.zeros(3, len(steps), most, longest, dtype=torch.long)
    for e, example in enumerate(steps):
        for a, alternative in enumerate(example):
            for k, (read, token) in enumerate(alternative):
                table[:, e, a, k] = torch.tensor((read, token, 1))
    read, token, real = table.to(device)
    return Alternatives(read, token, real.bool())
