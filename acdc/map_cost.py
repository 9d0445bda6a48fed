"""What a patching map costs, in bare forwards of one prompt. Torch-free; for `acdc.plan`.

A cell is computed from the layer and the position of its change on, and not at all where clean and corrupt run agree.
So over all layers and places it takes a small part of a forward, less the later in the prompt the change is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from acdc.graph import Graph
from acdc.node_sets import receiver_sets, sender_sets
from acdc.spec import Activations, Causes, Knockout, PatchSpec, Paths
from acdc.tasks import TASKS

CELL = 0.15  # forwards: what all heads by role of ioi took, on a model of 30 layers
PATH_CELL = 2 * CELL  # two streams
WRITES_LATER = 0.25  # layers: after all of its kind have read
RUNS = 2.0  # the clean and the corrupt run, recorded


def forwards_of_map(spec: PatchSpec, graph: Graph, tokens: float) -> tuple[float, str]:
    """Of one prompt, and in words. tokens: of a prompt."""
    cells, samples, per_cell = cells_of_map(spec, graph, tokens), 1, CELL
    if isinstance(spec.map, Causes) and spec.map.sigma is not None:
        samples = spec.map.samples
    if isinstance(spec.map, Paths):
        per_cell = PATH_CELL
    of_samples = f" x {samples} samples of noise" if samples > 1 else ""
    return RUNS + cells * samples * per_cell, f"(2 forward + {cells:,} cells at {per_cell:g} forwards{of_samples})"


def cells_of_map(spec: PatchSpec, graph: Graph, tokens: float) -> int:
    """How many cells the map has, as far as that can be told without a tokenizer."""
    n_layers, asked = graph.shape.n_layers, spec.map
    match asked:
        case Activations():
            heads = {"head": graph.shape.n_heads, "q": graph.shape.n_heads}
            heads |= {"k": graph.shape.n_kv_heads, "v": graph.shape.n_kv_heads}
            return n_layers * heads.get(asked.state, 1) * _places(spec, asked, tokens)
        case Causes():
            return n_layers * len(asked.rows(has_mlp=graph.shape.has_mlp)) * _places(spec, asked, tokens)
        case Knockout():
            return n_layers * (len(asked.blocked) if asked.blocked else max(1, len(_roles(spec)) - 1))
        case Paths():
            return _paths(asked, graph)


def _roles(spec: PatchSpec) -> Sequence[str]:
    """Roles that every prompt has, `end` among them."""
    if spec.task.pairs is None:
        return TASKS[spec.task.name].roles
    return sorted(set.intersection(*({*pair.spans, "end"} for pair in spec.task.pairs)))


def _places(spec: PatchSpec, asked: Activations | Causes, tokens: float) -> int:
    match asked.places:
        case "all":
            return 1
        case "role":
            return len(asked.roles or _roles(spec))
        case _:
            return round(tokens)


def _paths(asked: Paths, graph: Graph) -> int:
    """Pairs of which some sender comes before some receiver, told by layers."""
    writes = [min(map(_depth, names)) + WRITES_LATER for _, names in sender_sets(asked, graph) if names]
    reads = [max(map(_depth, names)) for _, names in receiver_sets(asked, graph) if names]
    return sum(write < read for write in writes for read in reads)


def _depth(name: str) -> float:
    """Where a node reads; a head before its layer's MLP."""
    if name == "embed":
        return -1.0
    if name == "logits":
        return float("inf")
    layer = float(re.findall(r"\d+", name)[0])
    return layer + 0.5 if name.startswith("mlp") else layer
