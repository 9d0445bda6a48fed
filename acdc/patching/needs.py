"""Which part of a sparse circuit the metric can see: nodes, and at which positions.

Seen from the output, as receivers are decided one after the other: a node is needed where a needed receiver keeps an
edge from it. Two ranges of positions are told apart, both ending at the last position read:
NARROW, from the first position read (usually the last token alone), and WIDE, from the first position that any circuit
changes (patching/prefix.py). Queries, MLPs and outputs are needed where their node is; keys and
values WIDE as soon as their head is needed at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.graph import Graph
from acdc.models.transformer import Transformer
from acdc.patching.circuits import Prompts

NOT, NARROW, WIDE = 0, 1, 2


class Needs:
    """Grows as receivers are decided, from the last to the first; a receiver's need is final when its turn comes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._of_output = np.zeros((graph.n_senders, graph.n_roles), dtype=np.int8)

    def of_receiver(self, receiver: int) -> int:
        kind = self.graph.receivers[receiver].kind
        if kind == "logits":
            return NARROW
        level = int(self._of_output.ravel()[self.graph.feeds[receiver]].max(initial=NOT))
        return WIDE if level and kind in ("k", "v") else level

    def of_whole(self, receiver: int) -> int:
        """Of a receiver of the whole graph: where any of its roles is needed."""
        return max(self.of_receiver(part) for part in set(self.graph.parts_of[receiver].tolist()))

    def of_sender(self, sender: int) -> int:
        return int(self._of_output[sender].max())

    def of_head(self, layer: int, head: int) -> int:
        """Where a head's output is needed; heads under a common norm share what any of them is needed for."""
        heads = self.graph.heads_of_layer(layer)
        levels = self._of_output[heads].max(1)
        return int(levels.max() if self.graph.shape.heads_share_norm else levels[head])

    def decide(self, receiver: int, kept: npt.NDArray[np.bool_]) -> None:
        """kept: [senders], the edges that stay into the receiver."""
        level = self.of_receiver(receiver)
        of_role = self._of_output[:, int(self.graph.role_of[receiver])]
        of_role[kept] = np.maximum(of_role[kept], level)


@dataclass(frozen=True)
class Positions:
    """The two ranges in one batch: [narrow, end) and [wide, end). Nothing is computed at positions beyond them."""

    narrow: int
    wide: int
    end: int

    @classmethod
    def of(cls, t: Transformer, prompts: Prompts) -> Positions:
        batch = prompts.batch
        if not t.is_causal:  # every position sees every other
            return cls(0, 0, batch.length)
        read = batch.read_pos.cpu()
        return cls(int(read.min()), prompts.prefix.start, int(read.max()) + 1)

    def first(self, level: int) -> int:
        return self.wide if level == WIDE else self.narrow

    def count(self, level: int) -> int:
        return self.end - self.first(level)
