"""The two ends of a path: who sends, and what is read.

What a node reads is an input of its own: per layer q of H heads, k of H heads, v of H heads, then the MLP's where there
is one; the logits' come last. Of the graph's receivers k and v belong to a key/value head, which a group of heads
reads; as inputs the heads of a group are apart, so that one of them can read something else than the others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from acdc.errors import Fault, GraphMismatch
from acdc.graph import Graph
from acdc.patch_map import Flags

Ints = npt.NDArray[np.int64]


def receiver_of_input(graph: Graph) -> Ints:
    """[inputs]: the receiver of the graph that each of them is, or that its group shares."""
    n_heads, n_kv_heads = graph.shape.n_heads, graph.shape.n_kv_heads
    q = np.arange(n_heads)
    k = n_heads + q * n_kv_heads // n_heads
    mlp = np.arange(n_heads + 2 * n_kv_heads, graph.receivers_per_layer)
    of_layer = np.concatenate((q, k, k + n_kv_heads, mlp))
    first = graph.receivers_per_layer * np.arange(graph.shape.n_layers)
    return np.append((first[:, None] + of_layer).ravel(), graph.n_receivers - 1)


def inputs_of_layer(graph: Graph, layer: int) -> slice:
    """q, k and v of each head, and the MLP's."""
    n = 3 * graph.shape.n_heads + int(graph.shape.has_mlp)
    return slice(layer * n, (layer + 1) * n)


def inputs_named(graph: Graph, names: Iterable[str]) -> Flags:
    """[inputs]. A head's name stands for its q, k and v, and for nothing that other heads of its group read; the name
    of a receiver for all that this is.

    Raises GraphMismatch with every unknown name.
    """
    of_input = receiver_of_input(graph)
    heads = {sender.name: sender for sender in graph.senders if sender.kind == "head"}

    def find(name: str) -> Ints:
        if name not in heads:
            return np.flatnonzero(of_input == graph.receiver_index(name))
        q = inputs_of_layer(graph, heads[name].layer).start + heads[name].head
        return np.arange(q, q + 3 * graph.shape.n_heads, graph.shape.n_heads)

    return _found(len(of_input), names, find, "receivers")


def senders_named(graph: Graph, names: Iterable[str]) -> Flags:
    """[senders]. Raises GraphMismatch with every unknown name."""
    return _found(graph.n_senders, names, graph.sender_index, "senders")


def _found(n: int, names: Iterable[str], find: Callable[[str], Ints | int], what: str) -> Flags:
    found, faults = np.zeros(n, dtype=bool), []
    for name in names:
        try:
            found[find(name)] = True
        except GraphMismatch as error:
            faults.append(Fault(name, error.message))
    if faults:
        raise GraphMismatch(f"{len(faults)} of the {what} named are not in this graph", faults)
    return found
