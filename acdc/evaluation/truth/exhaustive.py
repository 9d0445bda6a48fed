"""The true circuit of a small model, by cutting every edge: what a compiled or hand-wired model's circuit is.

A set of edges is sufficient where it alone, with all others cut, leaves the output as it is on every prompt. An edge
is true where cutting it alone changes the output on some prompt, from the whole model and from the circuit alike. Two
kinds of edges are neither true nor false. They are called redundant and are not scored, since nobody can call a method
right or wrong for keeping them:

1. Stand-ins. Where the edges that the whole model needs are not sufficient, some others stand in for each other (a copy
   of what two nodes write, say), and cutting one of them is made good by the rest. These are the edges that some
   smallest sufficient set has beside the needed ones. The sets are all found, by their hitting sets (Reiter 1987), as
   long as more edges never make a sufficient set insufficient.
2. Counterweights. An edge that the whole model needs may only undo what another one does: with both cut the output is
   as it was. The circuit, which has not the other, is then sufficient without it.

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
    """true: the circuit. stand_ins, counterweights: not scored. No edge is two of these. bool [senders, receivers]."""

    true: BoolMatrix
    stand_ins: BoolMatrix
    counterweights: BoolMatrix

    @classmethod
    def designed(cls, true: BoolMatrix) -> Truth:
        """Where every edge is true or false."""
        return cls(true, np.zeros_like(true), np.zeros_like(true))

    @property
    def redundant(self) -> BoolMatrix:
        return self.stand_ins | self.counterweights


def find_truth(t: Transformer, prompts: Sequence[Prompts]) -> Truth:
    """Raises ValueError where edges stand in for each other in too many ways to try them all."""
    outputs = Outputs(t, prompts)
    of_model = outputs.needed_in(t.graph.legal)
    stand_ins = _stand_ins(outputs, t.graph, of_model)
    of_circuit = outputs.needed_in(of_model | stand_ins)
    return Truth(of_model & of_circuit, stand_ins, of_model & ~of_circuit)


def _stand_ins(outputs: Outputs, graph: Graph, needed: BoolMatrix) -> BoolMatrix:
    others = [edge for edge in graph.edges() if not needed[edge.sender, edge.receiver]]
    found: set[Edge] = set()
    to_avoid = deque([frozenset[Edge]()])
    seen = set(to_avoid)
    while to_avoid:
        avoided = to_avoid.popleft()
        allowed = [edge for edge in others if edge not in avoided]
        if not outputs.are_kept_by(needed, allowed):
            continue  # whatever is sufficient has one of the edges avoided
        added = _smallest(outputs, needed, [], allowed)
        found |= set(added)
        for edge in added:
            if (more := avoided | {edge}) not in seen:
                seen.add(more)
                to_avoid.append(more)
        if len(seen) > MOST_SETS:
            raise ValueError(f"edges of {graph!r} stand in for each other in more than {MOST_SETS} ways")
    return graph.mask_of(found)


def _smallest(outputs: Outputs, needed: BoolMatrix, fixed: list[Edge], open_: list[Edge]) -> list[Edge]:
    """Of `open_`, edges without any of which the needed and the fixed ones are no longer sufficient (QuickXplain,
    Junker 2004). All of them together are."""
    if outputs.are_kept_by(needed, fixed):
        return []
    if len(open_) == 1:
        return open_
    half = len(open_) // 2
    late = _smallest(outputs, needed, fixed + open_[:half], open_[half:])
    return _smallest(outputs, needed, fixed + late, open_[:half]) + late


class Outputs:
    """What circuits of a model put out on all prompts, next to what the model does."""

    def __init__(self, t: Transformer, prompts: Sequence[Prompts]) -> None:
        self.t, self.prompts = t, prompts
        self.clean = self.logits(t.graph.legal[None])
        self.limit = CHANGED * float(self.clean.max() - self.clean.min())

    def needed_in(self, circuit: BoolMatrix) -> BoolMatrix:
        """Those of a circuit's edges of which each, cut from it alone, changes some output: [senders, receivers]."""
        edges = np.argwhere(circuit)
        without = np.repeat(circuit[None], len(edges), axis=0)
        without[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
        needed = np.zeros_like(circuit)
        needed[tuple(edges[self.differ(without)].T)] = True
        return needed

    def are_kept_by(self, circuit: BoolMatrix, more: Sequence[Edge]) -> bool:
        """Whether these edges alone leave every output as it is."""
        return not self.differ((circuit | self.t.graph.mask_of(more))[None])[0]

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
