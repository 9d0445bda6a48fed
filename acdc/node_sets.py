"""The sets of nodes that path patching is asked for, as the nodes of a graph. Torch-free: what they cost is told before
anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from acdc.graph import Graph, Receiver, Sender
from acdc.spec import EVERY, NodeSets, Paths

Labelled = tuple[str, tuple[str, ...]]  # a label and its nodes: none where the graph has no such nodes


def sender_sets(asked: Paths, graph: Graph) -> list[Labelled]:
    """In the order asked for. A word that stands alone is every such node by itself; in a set it is all of them."""
    return _expanded(asked.senders, graph, graph.senders)


def receiver_sets(asked: Paths, graph: Graph) -> list[Labelled]:
    """The same of receivers; of these `all` has q, k and v apart."""
    return _expanded(asked.receivers, graph, graph.receivers)


def _expanded(asked: NodeSets, graph: Graph, side: Sequence[Sender] | Sequence[Receiver]) -> list[Labelled]:
    heads, mlps = (tuple(node.name for node in graph.senders if node.kind == kind) for kind in ("head", "mlp"))
    every = dict(zip(EVERY, (heads, mlps, tuple(node.name for node in side)), strict=True))
    found: list[Labelled] = []
    for one in asked:
        if isinstance(one, str):
            found += [(name, (name,)) for name in every[one]]
        else:
            names = (name for node in one.nodes for name in every.get(node, (node,)))
            found.append((one.label, tuple(dict.fromkeys(names))))
    return found
