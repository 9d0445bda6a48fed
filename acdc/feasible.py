"""What a job asks of a graph, checked as soon as there is one: hours of searching are not to end in a refusal."""

from __future__ import annotations

from collections.abc import Iterator

from acdc.errors import Fault, TaskError
from acdc.graph import Graph
from acdc.selection import size_of
from acdc.spec import Acdc, DiscoverSpec, EdgePruning, Ensemble, MeasuredSpec, MethodSpec, Selection


def require_feasible(spec: MeasuredSpec, graph: Graph) -> None:
    """Raises TaskError with every fault."""
    faults = list(_faults_of_size(spec.selection, graph.n_edges))
    if isinstance(spec, DiscoverSpec):
        for where, method in _methods_of(spec.method):
            faults += _faults_of_method(where, method, graph.n_edges)
    if faults:
        raise TaskError(f"the model's graph of {graph.n_edges:,} edges cannot give what is asked for", faults)


def edges_asked_for(selection: Selection, n_edges: int) -> int | None:
    """The number of edges that `size` stands for, None without one."""
    size = selection.size
    return size if size is None or isinstance(size, int) else size_of(size, n_edges)


def _faults_of_size(selection: Selection, n_edges: int) -> Iterator[Fault]:
    asked_for = edges_asked_for(selection, n_edges)
    if asked_for is None:
        return
    if asked_for > n_edges:
        yield Fault("selection.size", f"asks for {asked_for:,} edges and this graph has {n_edges:,}")
    if asked_for < 1:
        yield Fault(
            "selection.size",
            f"{selection.size:g} of {n_edges:,} edges is less than one edge: give a number of edges or a larger share",
        )


def _methods_of(method: MethodSpec) -> Iterator[tuple[str, MethodSpec]]:
    """Each method that is run, with its place in the spec."""
    if isinstance(method, Ensemble):
        yield from ((f"method.methods.{number}", part) for number, part in enumerate(method.methods))
    else:
        yield "method", method


def _faults_of_method(where: str, method: MethodSpec, n_edges: int) -> Iterator[Fault]:
    if not isinstance(method, EdgePruning | Acdc) or method.edges is None or method.edges < 1:
        return
    open_to_it = n_edges if method.warm_start is None else max(1, round(method.warm_start * n_edges))
    if method.edges > open_to_it:
        raised = "" if method.warm_start is None else " or raise `warm_start`"
        yield Fault(
            f"{where}.edges",
            f"asks for {method.edges:,.0f} edges and the search has {open_to_it:,} to keep: ask for fewer{raised}",
        )
