"""What a task is made of once a tokenizer has seen it. Torch-free: token ids and names only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

Tokens = tuple[int, ...]
Span = tuple[int, int]  # token positions [start, stop)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that tasks use."""

    bos_token_id: int | None

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupt prompt of equal length, and what may follow them.

    clean, corrupt: token ids, BOS included where the model wants one. The answer follows the last token.
    answers, wrong: one or more alternatives each; an alternative is one or more tokens.
    group: the template (or row group) that made it: search and held-out prompts share none.
    roles: token spans in the clean prompt, by name (IO, S1, S2, end, ...).
    """

    clean: Tokens
    corrupt: Tokens
    answers: tuple[Tokens, ...]
    wrong: tuple[Tokens, ...]
    group: str
    roles: Mapping[str, Span] = field(default_factory=dict)
    clean_text: str = ""
    corrupt_text: str = ""


@dataclass(frozen=True)
class Dropped:
    """A row that could not be used: its number in the source (from 1) and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a task for one tokenizer: those to search on, those held out by group."""

    task: str
    corruption: str
    search: tuple[Pair, ...]
    held_out: tuple[Pair, ...]
    dropped: tuple[Dropped, ...] = ()

    @property
    def sha256(self) -> str:
        """Hash of every token, answer, group and role, in order: two equal hashes mean the same prompts."""
        rows = [[asdict(pair) for pair in pairs] for pairs in (self.search, self.held_out)]
        return hashlib.sha256(json.dumps([self.task, self.corruption, rows], sort_keys=True).encode()).hexdigest()


def common_roles(pairs: Sequence[Pair]) -> list[str]:
    """Roles that every pair has, in the order in which they begin in the first pair."""
    common = set.intersection(*(set(pair.roles) for pair in pairs))
    return sorted(common, key=lambda role: (pairs[0].roles[role], role))
