"""A circuit of edges split by position role, from pairs with spans over HTTP to its picture and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from acceptance_kit import Stack, quick, task

from acdc.errors import GraphMismatch, SpecError, TaskError

NAMED = {"late": [4, 7], "early": [0, 3]}
ROLES = ("early", "late", "end", "other")


def split(model: Path, **changes: Any) -> dict[str, Any]:
    """The quick search, of edges at roles."""
    own = task()
    rows = [{**row, "spans": NAMED} for row in own["pairs"]]
    return {**quick(model), "task": {**own, "pairs": rows}, "positions": "roles", "tags": ["roles"], **changes}


def hypothesis(model: Path, edges: list[str], **changes: Any) -> dict[str, Any]:
    spec = split(model, evaluation={"grid": [1.0]})
    return {**{key: spec[key] for key in ("model", "task", "positions", "evaluation")}, "edges": edges, **changes}


@pytest.fixture(scope="module")
def split_id(stack: Stack, model: Path) -> str:
    return stack.succeeded(stack.client.submit(split(model))).circuit_ids[0]


def test_it_is_found_and_stored_with_its_roles(stack: Stack, split_id: str) -> None:
    circuit = stack.client.circuit_file(split_id)
    assert circuit.graph.shape.roles == ROLES
    assert circuit.provenance.task.roles == ("early", "late", "end")
    edges = [f"{edge.sender}->{edge.receiver}" for edge in stack.client.edges(split_id)]
    assert edges == [circuit.graph.edge_name(edge) for edge in circuit.edges()]
    assert any("@" in edge for edge in edges)


def test_lists_find_it_by_an_edge_at_its_role_and_at_any(stack: Stack, split_id: str, circuit_id: str) -> None:
    edge = next(edge for edge in stack.client.edges(split_id) if "@" in edge.receiver)
    receiver, _, role = edge.receiver.partition("@")
    other = next(name for name in (*ROLES, "none") if f"{receiver}@{name}" != edge.receiver)

    def found(name: str) -> list[str]:
        return [circuit.id for circuit in stack.client.circuits(edge=name)]

    assert split_id in found(f"{edge.sender}->{receiver}")
    assert split_id in found(f"{edge.sender}->{receiver}@{role}")
    assert circuit_id not in found(f"{edge.sender}->{receiver}@{role}")
    assert split_id not in found(f"{edge.sender}->{receiver}@{other}x")
    assert split_id in [circuit.id for circuit in stack.client.circuits(node=edge.sender)] or edge.sender == "embed"


def test_it_is_shown_and_its_card_and_picture_say_the_roles(stack: Stack, split_id: str) -> None:
    said = stack.ask("circuits", "show", split_id).output
    assert "edges split by role" in said
    assert "positions early, late, end, other" in " ".join(said.split())
    assert "edges split by role" in stack.client.card(split_id)
    assert "split at other, early, late, end" in stack.client.card_page(split_id)
    picture = stack.client.graph_svg(split_id)
    ElementTree.fromstring(picture)
    drawn = [role for role in ROLES if f"embed at {role}" in picture]
    wanted = {edge.receiver.partition("@")[2] or "end" for edge in stack.client.edges(split_id)}
    assert set(drawn) == wanted


def test_exports_name_every_edge_at_its_role(stack: Stack, split_id: str) -> None:
    circuit = stack.client.circuit_file(split_id)
    rows = stack.client.export(split_id, "csv").decode().splitlines()[1:]
    assert [",".join(row.split(",")[:2]) for row in rows] == [
        circuit.graph.edge_name(edge).replace("->", ",") for edge in circuit.graph.edges()
    ]
    assert stack.client.import_file(stack.client.export(split_id)).n_edges == circuit.n_edges


def test_an_evaluation_inherits_its_roles(stack: Stack, split_id: str) -> None:
    job = stack.succeeded(stack.client.evaluate(split_id, {"ablation": "zero"}))
    assert [(one.kind, one.circuit_id) for one in job.results] == [("evaluation", split_id)]
    [made] = [one for one in stack.client.evaluations(split_id) if one.job_id == job.id]
    assert made.spec["positions"] == "roles"
    assert "positions roles" in stack.client.card(split_id)


def test_whole_edges_and_other_roles_are_refused_with_the_reason(stack: Stack, split_id: str, circuit_id: str) -> None:
    said = stack.failed(stack.client.evaluate(split_id, {"positions": "all"}))
    assert "edges are split by role (early, late, end, other), and `positions` makes them whole" in said
    said = stack.failed(stack.client.evaluate(split_id, {"task": task()}))
    assert "not every prompt has the roles early, late by which edges are to be split; all have: end" in said
    said = stack.failed(stack.client.evaluate(circuit_id, {"positions": "roles"}))
    assert "edges are whole, and `positions` makes them split by role (end, other)" in said


def test_edges_and_nodes_are_taken_out_by_plain_names_and_by_those_at_a_role(stack: Stack, split_id: str) -> None:
    source = stack.client.circuit_file(split_id)
    name = next(name for name in map(source.graph.edge_name, source.edges()) if "@" in name and "mlp1" not in name)
    for edge in (name, name.partition("@")[0]):
        edit = {"remove_edges": [edge], "remove_nodes": ["mlp1"]}
        circuit = stack.circuit(stack.succeeded(stack.client.evaluate(split_id, {"edit": edit})))
        gone = circuit.graph.mask_of_edges([edge])
        assert not (circuit.kept & gone).any()
        assert "mlp1" not in circuit.nodes()
    with pytest.raises(GraphMismatch) as refused:
        stack.client.evaluate(split_id, {"edit": {"remove_edges": ["embed->1.0.v@S2"]}})
    assert "as 0.0.q@end: early, late, end, other" in str(refused.value)


def test_a_hypothesis_says_where(stack: Stack, model: Path) -> None:
    edges = ["embed->0.0.v@early", "0.0->1.0.v@late", "1.0->logits"]
    circuit = stack.circuit(stack.succeeded(stack.client.hypothesis(hypothesis(model, edges))))
    assert set(circuit.graph.names_of(circuit.kept)) == set(edges)
    said = stack.failed(stack.client.hypothesis(hypothesis(model, ["embed->0.0.v@S2", "1.0->logits"])))
    assert "0.0.v@S2" in said
    assert "as 0.0.q@end: early, late, end, other" in said
    said = stack.failed(stack.client.hypothesis(hypothesis(model, edges, positions="all")))
    assert "not split by role" in said


def test_what_cannot_be_had_of_it_is_refused_with_the_reason(stack: Stack, split_id: str, model: Path) -> None:
    with pytest.raises(TaskError, match="split by position role"):
        stack.client.try_prompt(split_id, "ijklefgh")
    with pytest.raises(SpecError, match="method 'exact' does not split edges by position"):
        stack.client.submit(split(model, method="exact"))


def test_a_challenge_tells_a_control_with_other_roles_as_skipped(stack: Stack, split_id: str) -> None:
    asked = {"vary": ["ablation"], "factorial": False}
    job = stack.succeeded(stack.client.challenge(split_id, asked))
    [made] = [one for one in stack.client.challenges(split_id) if one.job_id == job.id]
    assert [one.name for one in made.challenge.tried] == ["as it was found", "ablation zero", "ablation mean"]
    assert made.challenge.tried[0].f is not None
    assert all("@" in one.edge or one.edge.endswith("logits") for one in made.challenge.edges)
    [other] = [one for one in made.challenge.controls if "another task" in one.name]
    assert other.f == ()
    assert other.skipped
