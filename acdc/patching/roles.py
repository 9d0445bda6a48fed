"""The tokens of a batch by their position roles, for edges that are split by them."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from acdc.graph import BoolMatrix


class TokensByRole:
    """Tokens sorted by role, so that a product over the tokens of each role takes the place of one over all.

    roles: the number of each token's role [row, pos]. slices: where the tokens of each role stand when sorted.
    """

    def __init__(self, roles: Tensor, n_roles: int) -> None:
        flat = roles.flatten()
        self.order = torch.argsort(flat, stable=True)
        self._back = torch.argsort(self.order)
        ends = [0, *itertools.accumulate(torch.bincount(flat, minlength=n_roles).tolist())]
        self.slices = [slice(start, stop) for start, stop in itertools.pairwise(ends)]

    def sort(self, x: Tensor) -> Tensor:
        """[..., row, pos, d] -> [..., token, d], sorted."""
        return x.flatten(-3, -2).index_select(-2, self.order)

    def unsort(self, x: Tensor) -> Tensor:
        """[..., token, d], sorted -> in the batch's order."""
        return x.index_select(-2, self._back)


def at_tokens(kept: BoolMatrix, roles: Tensor, like: Tensor) -> Tensor:
    """1 at every token whose role is kept: kept [..., role], roles [row, pos] -> [..., row, pos, 1]."""
    weights: Tensor = torch.from_numpy(np.ascontiguousarray(kept)).to(like)[..., roles].unsqueeze(-1)
    return weights
