"""What activation patching works on: a model whose inner states can be recorded, and put into another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from acdc.metrics import Metric
from acdc.patching.batches import Batch
from acdc.tracing.measuring import Reader


@dataclass(frozen=True)
class Patch:
    """Rows of cells that differ from the base run at one layer.

    rows: [n], of the batch. components: [n], the head (or key/value head) each changes; 0 where the state is whole.
    where: [n, pos], true at the positions to change. start: the first position that any of them changes.
    first_read: the first position that any answer is read at.
    """

    kind: str
    layer: int
    rows: Tensor
    components: Tensor
    where: Tensor
    start: int
    first_read: int


class Subject(Protocol):
    """Recorded runs are its own affair: it makes them and takes them."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The states that can be patched."""

    @property
    def n_layers(self) -> int: ...

    @property
    def is_causal(self) -> bool:
        """Whether what happens at a position leaves all earlier ones as they are."""

    @property
    def device(self) -> Any: ...

    def components(self, kind: str) -> tuple[str, ...]:
        """Names of the parts of a state in each layer; empty where it is whole."""

    def record(self, tokens: Tensor) -> Any:
        """One run. tokens: [row, pos]"""

    def last(self, run: Any) -> Tensor:
        """What metrics are read from [row, pos, d]."""

    def reader(self, batch: Batch, metrics: Sequence[Metric], clean: Any) -> Reader: ...

    def patched(self, base: Any, other: Any, patch: Patch) -> tuple[Tensor, int]:
        """What the changed rows end with [n, positions, d], and the first of these positions."""

    def bytes_of_runs(self, batch: Batch) -> int:
        """What the recorded runs of a batch hold, both together."""

    def bytes_of_row(self, m: int, length: int) -> int:
        """What one changed row takes while it is computed from m positions before its end."""
