"""What a job asks of a stored circuit, or of a graph in a hypothesis: read, and refused where it cannot be had.

Torch-free: the service refuses before a row exists what the engine would refuse after it has loaded a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from acdc.circuit import Circuit
from acdc.errors import Fault, GraphMismatch, TaskError
from acdc.evaluation.editing import edited
from acdc.feasible import edges_asked_for, require_feasible
from acdc.graph import BoolMatrix, Graph
from acdc.selection import Kept, rank
from acdc.spec import EvaluateSpec, JobSpec, TrySpec


def require_possible(spec: JobSpec, circuit: Circuit) -> None:
    """Raises TaskError or GraphMismatch where a job on this circuit would fail whatever the model and the prompts."""
    match spec:
        case TrySpec():
            require_whole_edges(circuit)
        case EvaluateSpec():
            require_feasible(spec, circuit.graph)
            kept_of_stored(circuit, spec)


def require_whole_edges(circuit: Circuit) -> None:
    """Raises TaskError."""
    if roles := circuit.graph.shape.roles:
        raise TaskError(
            f"the circuit's edges are split by position role ({', '.join(roles)}) and nothing says where these are in "
            "a prompt typed in: evaluate the circuit on pairs with spans instead"
        )


def kept_of_stored(circuit: Circuit, spec: EvaluateSpec) -> tuple[Kept | None, list[str]]:
    """The circuit to judge, as it is, cut to another size or edited; None where its size is to be found by measuring.
    And a note on each name of the edit that changes nothing.

    Raises TaskError where it has no scores to cut by, GraphMismatch as `edited` does.
    """
    if not spec.selection.is_given:
        return _changed(circuit.graph, Kept(circuit.kept, circuit.selected), spec)
    if not circuit.tested.any():
        raise TaskError("this circuit has no scores to cut another size from: leave `selection` out")
    n = edges_asked_for(spec.selection, circuit.graph.n_edges)
    if n is None:
        return None, []  # a faithfulness to reach
    ranking = rank(circuit.graph, circuit.scores, circuit.tested, spec.selection.rule or "signed")
    return _changed(circuit.graph, ranking.select(n), spec)


def kept_of_hypothesis(graph: Graph, spec: EvaluateSpec) -> tuple[Kept, list[str]]:
    """The same of a hypothesis. Raises GraphMismatch with every name that the graph has not."""
    assert spec.hypothesis is not None
    faults: list[Fault] = []
    edges = _mask(graph, graph.mask_of_edges, spec.hypothesis.edges, faults)
    nodes = _mask(graph, graph.mask_of_nodes, spec.hypothesis.nodes, faults)
    if faults:
        raise GraphMismatch("not all that the hypothesis names is in this graph", faults)
    return _changed(graph, Kept.of(graph, edges | nodes, "hypothesis"), spec)


def _changed(graph: Graph, kept: Kept, spec: EvaluateSpec) -> tuple[Kept, list[str]]:
    changes = spec.edit.model_dump()
    if not any(changes.values()):
        return kept, []
    made = edited(graph, kept.mask, **changes)
    return Kept.of(graph, made.mask, "edited"), [f"the edit's {fault}: that changed nothing" for fault in made.idle]


def _mask(
    graph: Graph, read: Callable[[Sequence[str]], BoolMatrix], names: Sequence[str], faults: list[Fault]
) -> BoolMatrix:
    try:
        return read(names) if names else graph.mask_of(())
    except GraphMismatch as error:
        faults += error.faults
        return graph.mask_of(())
