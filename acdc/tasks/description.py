"""What every task file offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from acdc.tasks.prompts import PromptSet, Tokenizer


class Build(Protocol):
    """Make a task's prompts for a tokenizer. The same arguments give the same prompts, on any machine.

    Raises TaskError with every fault where the tokenizer cannot express the task.
    """

    def __call__(
        self, tokenizer: Tokenizer, *, n_search: int, n_held_out: int, corruption: str, seed: int
    ) -> PromptSet: ...


@dataclass(frozen=True)
class TaskDescription:
    """corruptions: the first is the default. roles: the position roles that its prompts carry."""

    name: str
    summary: str
    example: str
    corruptions: tuple[str, ...]
    roles: tuple[str, ...]
    build: Build
