"""The graph against published counts and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.errors import GraphMismatch
from acdc.graph import Edge, Graph, GraphShape

SIZES = [
    ("gpt2-small", GraphShape(12, 12, 12), 32_491),
    ("attention-only 4x8", GraphShape(4, 8, 8, has_mlp=False), 1_281),
    ("attention-only 2x8", GraphShape(2, 8, 8, has_mlp=False), 257),
    ("tracr-reverse", GraphShape(4, 1, 1, split_position=True), 94),
    ("tracr-proportion", GraphShape(2, 1, 1, split_position=True), 32),
    ("gpt2-medium", GraphShape(24, 16, 16), 231_877),
    ("smollm2-135m", GraphShape(30, 9, 3), 70_651),
    ("gemma-3-270m", GraphShape(18, 4, 1), 5_644),
    ("gemma-2-2b", GraphShape(26, 8, 4), 50_610),
    ("qwen2.5-0.5b", GraphShape(24, 14, 2), 79_813),
    ("llama-3-8b", GraphShape(32, 32, 8), 805_681),
]


@pytest.mark.parametrize(("name", "shape", "count"), SIZES, ids=[row[0] for row in SIZES])
def test_edge_counts_match_the_published_ones(name: str, shape: GraphShape, count: int) -> None:
    assert Graph(shape).n_edges == count


def test_parallel_blocks_have_no_head_to_mlp_edge_inside_a_layer() -> None:
    serial, parallel = Graph(GraphShape(3, 4, 4)), Graph(GraphShape(3, 4, 4, is_parallel=True))
    assert serial.n_edges - parallel.n_edges == 3 * 4
    serial.edge("1.2->mlp1")
    with pytest.raises(GraphMismatch, match="does not come before"):
        parallel.edge("1.2->mlp1")


@pytest.mark.parametrize("shape", [row[1] for row in SIZES[:5]])
def test_names_and_cells_are_one_to_one(shape: GraphShape) -> None:
    graph = Graph(shape)
    edges = list(graph.edges())
    assert len(edges) == graph.n_edges == len({graph.edge_name(edge) for edge in edges})
    assert all(graph.edge(graph.edge_name(edge)) == edge for edge in edges)


def test_every_unknown_name_is_reported_at_once() -> None:
    graph = Graph(GraphShape(2, 2, 1))
    with pytest.raises(GraphMismatch) as caught:
        graph.mask_of_edges(["embed->mlp0", "9.9->logits", "mlp0->mlp0", "nonsense"])
    assert [fault.where for fault in caught.value.faults] == ["9.9->logits", "mlp0->mlp0", "nonsense"]
    with pytest.raises(GraphMismatch) as caught:
        graph.mask_of_nodes(["0.1", "7.0", "mlp9"])
    assert [fault.where for fault in caught.value.faults] == ["7.0", "mlp9"]


def test_the_receivers_of_a_node_are_those_that_say_they_are_read_by_it() -> None:
    graph = Graph(GraphShape(2, 4, 2))
    assert [graph.receivers[r].name for r in graph.receivers_of("1.3")] == ["1.3.q", "1.1.k", "1.1.v"]
    assert [graph.receivers[r].name for r in graph.receivers_of("mlp0")] == ["mlp0"]
    assert [graph.receivers[r].name for r in graph.receivers_of("logits")] == ["logits"]
    for name in ("embed", "2.0"):
        with pytest.raises(GraphMismatch, match=name):
            graph.receivers_of(name)


def test_a_mask_of_nodes_holds_the_edges_between_them() -> None:
    graph = Graph(GraphShape(2, 2, 1))
    mask = graph.mask_of_nodes(["1.0"])
    found = {graph.edge_name(Edge(int(s), int(r))) for s, r in zip(*np.nonzero(mask), strict=True)}
    assert found == {"embed->1.0.q", "embed->1.0.k", "embed->1.0.v", "embed->logits", "1.0->logits"}


def connected_by_walking(graph: Graph, kept: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Every path embed -> logits, followed edge by edge."""
    on_path = np.zeros_like(kept)

    def outputs_moved_by(receiver: int) -> list[int]:
        nodes = set(graph.nodes_read_by(receiver))
        if graph.shape.heads_share_norm and graph.receivers[receiver].kind in "qkv":
            nodes = {f"{graph.receivers[receiver].layer}.{h}" for h in range(graph.shape.n_heads)}
        return [graph.sender_index(name) for name in nodes if name != "logits"]

    def walk(sender: int, path: list[tuple[int, int]]) -> None:
        for receiver in np.nonzero(kept[sender])[0]:
            here = [*path, (sender, int(receiver))]
            if graph.receivers[int(receiver)].kind == "logits":
                for cell in here:
                    on_path[cell] = True
            for onward in outputs_moved_by(int(receiver)):
                walk(onward, here)

    for start in range(graph.n_inputs):
        walk(start, [])
    return on_path


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.6), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_connected_edges_are_those_on_some_path(
    seed: int, density: float, parallel: bool, shared: bool, kv_heads: int
) -> None:
    graph = Graph(GraphShape(2, 2, kv_heads, is_parallel=parallel, heads_share_norm=shared))
    kept = graph.legal & (np.random.default_rng(seed).random(graph.legal.shape) < density)
    assert np.array_equal(graph.connected(kept), connected_by_walking(graph, kept))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_several_circuits_at_once_are_connected_each_by_itself(seed: int, shared: bool, split: bool) -> None:
    graph = Graph(GraphShape(3, 2, 1, heads_share_norm=shared, split_position=split))
    kept = np.random.default_rng(seed).random((2, 3, *graph.legal.shape)) < 0.3
    assert np.array_equal(graph.connected(kept), [[graph.connected(one) for one in row] for row in kept])
    reaches = graph.reaches_logits(kept & graph.legal)
    assert np.array_equal(reaches, [[graph.reaches_logits(one & graph.legal) for one in row] for row in kept])


def test_an_impossible_shape_is_refused() -> None:
    with pytest.raises(GraphMismatch, match="must divide"):
        GraphShape(2, 4, 3)
