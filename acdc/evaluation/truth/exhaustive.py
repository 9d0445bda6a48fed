"""The true circuit of a small model, by cutting every edge: what a compiled or hand-wired model's circuit is.

An edge is true where cutting it alone changes the output on some prompt. A set of edges is sufficient where it alone,
with all others cut, leaves the output as it is on every prompt. Where the true edges are not sufficient, some others
stand in for each other (a copy of what two nodes write, say), and cutting one of them is made good by the rest. Every
edge that some smallest sufficient set has beside the true ones is redundant: nobody can call a method right or wrong
for keeping it, so it is not scored. These sets are all found, by their hitting sets (Reiter 1987), as long as more
edges never make a sufficient set insufficient.

What is true hangs on the ablation and on the prompts: an edge that carries the same in the clean and the corrupt run
(a position, in prompts of equal length) matters under zero ablation only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.graph import BoolMatrix, Edge, Graph
from acdc.models.transformer import Transformer
from acdc.patching.circuits import Prompts

CHANGED = 1e-4  # of the range of the logits that are read
AT_ONCE = 64  # circuits
MOST_SETS = 500  # smallest sufficient ones, and dead ends on the way to them


@dataclass(frozen=True, eq=False)
class Truth:
    """true: the circuit. redundant: edges that are not scored. Both bool [senders, receivers]."""

    true: BoolMatrix
    redundant: BoolMatrix

    @property
    def is_sufficient(self) -> bool:
        """Whether the true edges alone leave the output as it is on every prompt."""
        return not self.redundant.any()

    def scored(self, graph: Graph) -> BoolMatrix:
        return graph.legal & ~self.redundant


def find_truth(t: Transformer, prompts: Sequence[Prompts]) -> Truth:
    """Raises ValueError where edges stand in for each other in too many ways to try them all."""
    outputs = Outputs(t, prompts)
    edges = np.array([(edge.sender, edge.receiver) for edge in t.graph.edges()])
    without = np.repeat(t.graph.legal[None], len(edges), axis=0)
    without[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    true = np.zeros_like(t.graph.legal)
    true[tuple(edges[outputs.differ(without)].T)] = True
    return Truth(true, _redundant(outputs, t.graph, true))


def _redundant(outputs: Outputs, graph: Graph, true: BoolMatrix) -> BoolMatrix:
    others = [edge for edge in graph.edges() if not true[edge.sender, edge.receiver]]
    redundant: set[Edge] = set()
    to_avoid = deque([frozenset[Edge]()])
    seen = set(to_avoid)
    while to_avoid:
        avoided = to_avoid.popleft()
        allowed = [edge for edge in others if edge not in avoided]
        if not outputs.are_kept_by(true, allowed):
            continue  # whatever is sufficient has one of the edges avoided
        added = _smallest(outputs, true, [], allowed)
        redundant |= set(added)
        for edge in added:
            if (more := avoided | {edge}) not in seen:
                seen.add(more)
                to_avoid.append(more)
        if len(seen) > MOST_SETS:
            raise ValueError(f"edges of {graph!r} stand in for each other in more than {MOST_SETS} ways")
    return graph.mask_of(redundant)


def _smallest(outputs: Outputs, true: BoolMatrix, fixed: list[Edge], open_: list[Edge]) -> list[Edge]:
    """Of `open_`, edges without any of which the true and the fixed ones are no longer sufficient (QuickXplain, Junker
    2004). All of them together are."""
    if outputs.are_kept_by(true, fixed):
        return []
    if len(open_) == 1:
        return open_
    half = len(open_) // 2
    late = _smallest(outputs, true, fixed + open_[:half], open_[half:])
    return _smallest(outputs, true, fixed + late, open_[:half]) + late


class Outputs:
    """What circuits of a model put out on all prompts, next to what the model does."""

    def __init__(self, t: Transformer, prompts: Sequence[Prompts]) -> None:
        self.t, self.prompts = t, prompts
        self.clean = self.logits(t.graph.legal[None])
        self.limit = CHANGED * float(self.clean.max() - self.clean.min())

    def are_kept_by(self, true: BoolMatrix, more: Sequence[Edge]) -> bool:
        """Whether these edges alone leave every output as it is."""
        return not self.differ((true | self.t.graph.mask_of(more))[None])[0]

    def differ(self, masks: BoolMatrix) -> BoolMatrix:
        """masks: [circuit, senders, receivers] -> [circuit]: whether any logit that is read changes on any prompt."""
        parts = [self.logits(masks[first : first + AT_ONCE]) for first in range(0, len(masks), AT_ONCE)]
        largest = [(part - self.clean).abs().flatten(1).amax(1) for part in parts]
        differ: BoolMatrix = (torch.cat(largest) > self.limit).cpu().numpy()
        return differ

    @torch.no_grad()
    def logits(self, masks: BoolMatrix) -> Tensor:
        """[circuit, read, vocab]"""
        as_numbers = torch.tensor(masks).to(self.t.device, self.t.dtype)
        return torch.cat([self.t.unembed(p.run(self.t, as_numbers)) for p in self.prompts], 1)
