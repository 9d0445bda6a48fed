"""How much memory runs hold, from a graph's shape alone. Torch-free: a plan tells it before anything is loaded."""

from __future__ import annotations

import numpy as np

from acdc.graph import Graph


def masked_streams(graph: Graph) -> int:
    """Residual streams that a masked forward holds for a token of one circuit: all senders' differences, one layer's
    inputs."""
    return graph.n_senders + 2 * (graph.shape.n_heads + 2 * graph.shape.n_kv_heads)


def trained_streams(graph: Graph) -> int:
    """Residual streams that a masked forward keeps for a token of one circuit where its masks have a gradient: all
    senders so far, again for every layer's heads, its MLP and the logits, and what each of them read."""
    whole = graph.whole
    known = whole.legal.sum(0)  # senders that a receiver reads
    layers = (np.unique(known[whole.receivers_of_layer(index)]).sum() for index in range(whole.shape.n_layers))
    return int(sum(layers) + known[-1]) + whole.n_receivers


def prepared_streams(graph: Graph, head_width: float) -> float:
    """Residual streams that the clean and the ablated run of a prompt leave for a token. head_width: H * e over d."""
    return 2 * graph.n_inputs + graph.shape.n_layers * (head_width + graph.shape.has_mlp)
