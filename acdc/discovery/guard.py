"""How near a threshold a row of a batch is not trusted, and a whole masked forward decides instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

FLOOR = 16.0  # in the dtype's units of rounding
MARGIN = 8.0  # times the largest difference seen


@dataclass
class Guard:
    """Rows and whole masked forwards add the same numbers in another order and differ in the last bits, by how much
    depends on model, device and dtype. So it is watched: now and then an edge's cost is computed both ways, and always
    where a whole masked forward decides. Errors and distances are relative to max(1, |metric|).

    unit: the dtype's unit of rounding. row_error: the largest difference of a cost seen. nearest: the smallest distance
    from the threshold at which a row decided.
    """

    unit: float
    row_error: float = 0.0
    nearest: float = float("inf")

    @classmethod
    def of(cls, dtype: torch.dtype, row_error: float = 0.0) -> Guard:
        return cls(torch.finfo(dtype).eps, row_error)

    @property
    def band(self) -> float:
        return max(FLOOR * self.unit, MARGIN * self.row_error)

    def trusts(self, margin: float, metric: float) -> bool:
        """Whether a row's cost, so far from the threshold, decides."""
        distance = abs(margin) / max(1.0, abs(metric))
        if distance <= self.band:
            return False
        self.nearest = min(self.nearest, distance)
        return True

    def saw(self, row_cost: float, cost: float, metric: float) -> None:
        """A cost by its row and by whole masked forwards."""
        self.row_error = max(self.row_error, abs(row_cost - cost) / max(1.0, abs(metric)))

    @property
    def is_kept(self) -> bool:
        """Whether no row decided nearer to the threshold than rows were seen to be wrong by."""
        return self.nearest > self.row_error

    def facts(self) -> Mapping[str, str]:
        return {name: repr(value) for name, value in asdict(self).items()}

    @classmethod
    def restored(cls, facts: Mapping[str, str]) -> Guard:
        return cls(**{name: float(value) for name, value in facts.items()})
