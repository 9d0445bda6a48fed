"""The circuit itself on its card: heads, and the strongest of the kept edges."""

from __future__ import annotations

from acdc.card.parts import Section, Table
from acdc.circuit import Circuit
from acdc.graph import Edge
from acdc.numerals import count, listed

MOST_EDGES = 30  # that a card lists


def heads_of(circuit: Circuit) -> list[str]:
    """The kept heads, in forward order, as `layer.head`."""
    return [name for name in circuit.nodes() if name[0].isdigit()]


def nodes_in_words(circuit: Circuit) -> str:
    """`12 heads and 1 MLP`."""
    n_mlps = sum(name.startswith("mlp") for name in circuit.nodes())
    return f"{count(len(heads_of(circuit)), 'head')} and {count(n_mlps, 'MLP')}"


def shared_inputs(circuit: Circuit) -> str | None:
    """How k and v inputs are numbered, where that is not as heads are: `23.1.v` is no input of head 23.1 there. The
    example is its own where it has one."""
    graph = circuit.graph
    heads, shared = graph.shape.n_heads, graph.shape.n_kv_heads
    if heads == shared:
        return None
    own = [edge.receiver for edge in circuit.edges()]
    example = next(r for r in (*own, *range(graph.n_receivers)) if graph.receivers[r].kind in ("k", "v"))
    return (
        f"k and v inputs are numbered by key/value head, {shared} in a layer of {heads} heads: "
        f"{graph.receivers[example].name.partition('@')[0]} is read by {listed(graph.nodes_read_by(example))}."
    )


def circuit_section(circuit: Circuit) -> Section:
    """Its nodes; the picture is for whoever can show one."""
    if not circuit.n_edges:
        return Section("The circuit")
    return Section("The circuit", (f"{nodes_in_words(circuit)}: {' '.join(heads_of(circuit)) or 'no heads'}.",))


def edges_section(circuit: Circuit) -> Section:
    """The strongest first."""
    shown = circuit.edges()[:MOST_EDGES]
    if not shown:
        return Section("Its edges", ("It has none.",), is_part=True)
    more = circuit.n_edges - len(shown)
    order = "The largest |score| first" if circuit.tested[circuit.kept].any() else "None has a score"
    said = [order + (f"; {more:,} more in the file." if more else ".")]
    said += [numbered] if (numbered := shared_inputs(circuit)) else []
    rows = [_row(circuit, rank, edge) for rank, edge in enumerate(shown, start=1)]
    table = Table.of(("#rank", "edge", "read by", "#score", "#share of resamples"), rows)
    return Section("Its edges", tuple(said), table, is_part=True)


def _row(circuit: Circuit, rank: int, edge: Edge) -> tuple[int, str, str | None, float | None, float | None]:
    graph, at = circuit.graph, (edge.sender, edge.receiver)
    readers = graph.nodes_read_by(edge.receiver)
    score = float(circuit.scores[at]) if circuit.tested[at] else None
    again = None if circuit.inclusion is None else float(circuit.inclusion[at])
    return rank, graph.edge_name(edge), " ".join(readers) if len(readers) > 1 else None, score, again
