"""A stored circuit in the formats of other programs. Each writer takes the circuit and its id and returns a file."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict
from typing import Any

from acdc.circuit import FORMAT, Circuit
from acdc.graph import Edge
from acdc.version import __version__


def as_json(circuit: Circuit, circuit_id: str) -> bytes:
    """Everything but the scores of the edges that are not kept."""
    return _dump(
        {
            "format": FORMAT,
            "id": circuit_id,
            "shape": asdict(circuit.graph.shape),
            "selected": asdict(circuit.selected),
            "provenance": asdict(circuit.provenance),
            "report": circuit.report and circuit.report.to_dict(),
            "nodes": circuit.nodes(),
            "edges": [
                {
                    "edge": circuit.graph.edge_name(edge),
                    "score": _score(circuit, edge),
                    "inclusion": _inclusion(circuit, edge),
                }
                for edge in circuit.edges()
            ],
        }
    )


def as_csv(circuit: Circuit, _: str) -> bytes:
    """Every edge of the graph in canonical order. An empty score: not tested; an empty inclusion: not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("sender", "receiver", "score", "kept", "inclusion"))
    for edge in circuit.graph.edges():
        names = circuit.graph.edge_name(edge).split("->")
        kept = int(circuit.kept[edge.sender, edge.receiver])
        writer.writerow((*names, _score(circuit, edge), kept, _inclusion(circuit, edge)))
    return text.getvalue().encode()


def as_attribution_graph(circuit: Circuit, circuit_id: str) -> bytes:
    """An attribution graph (schema 1.0.0) that Neuronpedia's viewer draws.

    A node is a head or an MLP, not a feature, and stands for all positions, so there is one column. The viewer wants
    layers above 0 and tells nodes apart by (layer, feature, ctx_idx): layer l is l + 1, a head's feature is its number,
    the MLP's the number after the last head. A link's weight is the sum of the kept edges' scores between two nodes;
    a key or value that several heads share counts for each of them that has a node.
    """
    choices = circuit.provenance.choices
    weights = _weights(circuit)
    known = {node["clerp"]: node for node in _viewer_nodes(circuit, {target for _, target in weights})}
    metadata = {
        "slug": circuit_id,
        "scan": re.sub(r"[^A-Za-z0-9_.-]+", "-", circuit.provenance.model.title) or "model",
        "prompt_tokens": ["(all positions)"],
        "prompt": f"task {circuit.provenance.task.name}, {circuit.provenance.task.n_search} prompts",
        "info": {
            "description": "Circuit of attention heads and MLPs over all positions; weights are summed edge scores. "
            "The viewer's replacement and completeness scores count transcoder features and say nothing here.",
            "generator": {"name": "acdc", "version": __version__},
        },
        "generation_settings": {**asdict(choices), **asdict(circuit.selected)},
    }
    links = [
        {"source": known[source]["node_id"], "target": known[_viewer_name(target)]["node_id"], "weight": weight}
        for (source, target), weight in weights.items()
    ]
    return _dump({"metadata": metadata, "qParams": {"linkType": "both"}, "nodes": list(known.values()), "links": links})


_LOGITS = "logits (p=1.000)"  # the viewer reads a probability out of a logit's label; all logits together have 1


def _viewer_name(node: str) -> str:
    return _LOGITS if node == "logits" else node


def _viewer_nodes(circuit: Circuit, entered: set[str]) -> list[dict[str, Any]]:
    shape = circuit.graph.shape
    named = {"embed", *circuit.nodes(), *entered}
    nodes = []
    for sender in (sender for sender in circuit.graph.senders if sender.name in named):
        name = sender.name
        if sender.kind in ("embed", "pos"):
            feature = int(sender.kind == "pos")
            nodes.append(_viewer_node(f"E_{feature}_0", "E", feature, "embedding", name))
        else:
            layer, feature = sender.layer + 1, sender.head if sender.kind == "head" else shape.n_heads
            nodes.append(_viewer_node(f"{layer}_{feature}_0", str(layer), feature, "unknown", name))
    layer = shape.n_layers + 1
    logits = _viewer_node(f"{layer}_0_0", str(layer), 0, "logit", _LOGITS)
    return [*nodes, {**logits, "jsNodeId": "L_0-0", "token_prob": 1.0, "is_target_logit": True}]


def _viewer_node(node_id: str, layer: str, feature: int, kind: str, label: str) -> dict[str, Any]:
    return {
        "node_id": node_id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": 0,
        "feature_type": kind,
        "jsNodeId": f"{layer}_{feature}-0",
        "clerp": label,
    }


def _weights(circuit: Circuit) -> dict[tuple[str, str], float]:
    """Node to node; untested edges weigh nothing but are there."""
    graph, writing = circuit.graph, set(circuit.nodes())
    weights: dict[tuple[str, str], float] = {}
    for edge in circuit.edges():
        source, readers = graph.senders[edge.sender].name, graph.nodes_read_by(edge.receiver)
        # Some heads of a group may write nothing. Where none writes, its input counts through a norm over the layer.
        for target in [name for name in readers if name in writing] or readers:
            weights[source, target] = weights.get((source, target), 0.0) + (_score(circuit, edge) or 0.0)
    return weights


def _score(circuit: Circuit, edge: Edge) -> float | None:
    return float(circuit.scores[edge.sender, edge.receiver]) if circuit.tested[edge.sender, edge.receiver] else None


def _inclusion(circuit: Circuit, edge: Edge) -> float | None:
    return None if circuit.inclusion is None else float(circuit.inclusion[edge.sender, edge.receiver])


def _dump(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode()
