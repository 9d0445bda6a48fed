"""Circuits as results and as imports, the questions asked of them, and the models they are of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_samples import CARD, EDGES, GRAPH, circuit, claimed, every_page, report, sql

from acdc.circuit import Provenance
from acdc.errors import NotFound, SpecError
from acdc.graph import Graph
from acdc.report import Report
from acdc.store import CheckpointRef, CircuitFilter, NewCircuit, NewEvaluation, State, Store

DIGEST = "d" * 64


def found(store: Store, **filters: object) -> list[str]:
    pages = every_page(lambda cursor: store.circuits.list(CircuitFilter(**filters), cursor=cursor, limit=2))
    return [row.id for row in pages]


def test_found_circuit_can_be_read_back(store: Store) -> None:
    claim = claimed(store, user="ada", fields={"name": "mine", "tags": ["x"], "notes": "n"})
    made = circuit(f=0.87)
    store.claims.succeed(claim, [NewCircuit("circuit", made, DIGEST)])
    (result,) = store.jobs.results(claim.job.id)
    assert result.circuit_id is not None
    detail = store.circuits.get(result.circuit_id)
    row = detail.row
    assert (row.user, row.job_id, row.result_key) == ("ada", claim.job.id, "circuit")
    assert (row.name, row.tags, row.notes) == ("mine", ("x",), "n")
    assert (row.model_fingerprint, row.model_reference) == (CARD.fingerprint, CARD.reference)
    assert (row.task, row.method, row.metric, row.ablation, row.rule) == (
        "ioi",
        "eap",
        "logit_diff",
        "resample",
        "signed",
    )
    assert (row.n_edges, row.n_edges_total, row.fraction) == (5, GRAPH.n_edges, 5 / GRAPH.n_edges)
    assert (row.f, row.kl_share, row.artefact) == (0.87, 0.4, DIGEST)
    assert row.graph_fingerprint == GRAPH.fingerprint
    assert detail.report is not None
    assert Report.from_dict(detail.report) == made.report
    assert detail.provenance["model"]["parity"] == 1e-6
    assert store.circuits.list().items == (row,)


def test_edges_come_by_size_of_score_and_page_by_page(store: Store) -> None:
    row = store.circuits.add(circuit(), DIGEST, user="ada")
    edges = every_page(lambda cursor: store.circuits.edges(row.id, cursor=cursor, limit=2))
    assert [(edge.rank, f"{edge.sender}->{edge.receiver}", edge.score) for edge in edges] == [
        (i + 1, name, (-1) ** i * (5 - i)) for i, name in enumerate(EDGES)
    ]


def test_edge_without_a_score_has_none(store: Store) -> None:
    made = circuit()
    untested = replace(made, tested=made.tested & False, scores=made.scores * 0)
    row = store.circuits.add(untested, DIGEST, user="ada")
    assert {edge.score for edge in store.circuits.edges(row.id).items} == {None}


def test_thresholds_give_one_job_several_circuits(store: Store) -> None:
    claim = claimed(store)
    results = [NewCircuit(f"threshold={t}", circuit(EDGES[:n]), DIGEST) for t, n in ((0.1, 3), (0.01, 5))]
    assert store.claims.succeed(claim, results).state is State.SUCCEEDED
    assert len(found(store, job_id=claim.job.id)) == 2
    assert [row.key for row in store.jobs.results(claim.job.id)] == ["threshold=0.01", "threshold=0.1"]


def test_every_filter_finds_what_it_names_and_nothing_else(store: Store) -> None:
    other = replace(CARD, reference="path:other", fingerprint="0" * 64)
    whole = store.circuits.add(circuit(), DIGEST, user="ada", tags=["x", "y"]).id
    small = store.circuits.add(circuit(EDGES[:3], task="induction"), DIGEST, user="bob", tags=["x"]).id
    foreign = store.circuits.add(circuit(EDGES[3:], model=other), DIGEST, user="ada").id
    assert found(store) == [foreign, small, whole]
    assert found(store, user="bob") == [small]
    assert found(store, model="path:other") == found(store, model="0" * 64) == [foreign]
    assert found(store, task="induction") == [small]
    assert found(store, method="exact") == found(store, metric="accuracy") == []
    assert found(store, method="eap", metric="logit_diff") == [foreign, small, whole]
    assert found(store, nodes=("1.1",)) == [small, whole]
    assert found(store, nodes=("1.1", "mlp0")) == [whole]
    assert found(store, edges=("embed -> mlp0",)) == [foreign, whole]
    assert found(store, edges=("embed->mlp0", "1.1->logits")) == [whole]
    assert found(store, tags=("x",)) == [small, whole]
    assert found(store, tags=("x", "y")) == [whole]
    assert found(store, min_edges=3) == [small, whole]
    assert found(store, max_edges=3) == [foreign, small]
    assert found(store, nodes=("\x00",)) == []


def test_an_edge_without_a_role_is_found_at_any(store: Store) -> None:
    graph = Graph(GRAPH.shape.split_by(("S_",)))
    split = circuit(("embed->mlp0@S_", "mlp0->1.0.v@S_", "1.0->logits"), graph=graph)
    by_role = store.circuits.add(split, DIGEST, user="ada").id
    whole = store.circuits.add(circuit(), DIGEST, user="ada").id
    assert found(store, edges=("embed->mlp0",)) == [whole, by_role]
    assert found(store, edges=("embed->mlp0@S_",)) == [by_role]
    assert found(store, edges=("embed->mlp0@SX",)) == found(store, edges=("embed->mlp",)) == []


def test_edge_filter_that_is_no_edge_is_refused(store: Store) -> None:
    with pytest.raises(SpecError) as caught:
        store.circuits.list(CircuitFilter(edges=("9.9", "a->b", "embed")))
    assert [fault.where for fault in caught.value.faults] == ["9.9", "embed"]


def test_relabelling_changes_only_what_is_named(store: Store) -> None:
    row = store.circuits.add(circuit(), DIGEST, user="ada", name="old", tags=["x"], notes="keep")
    assert store.circuits.relabel(row.id, name="new") == replace(row, name="new")
    assert store.circuits.relabel(row.id, tags=["b", "a", "b"]).tags == ("a", "b")
    bare = store.circuits.relabel(row.id, name=None, tags=(), notes=None)
    assert (bare.name, bare.tags, bare.notes) == (None, (), None)


def test_deleted_circuit_leaves_nothing_but_the_jobs_record(store: Store) -> None:
    claim = claimed(store)
    store.claims.succeed(claim, [NewCircuit("circuit", circuit(), DIGEST)])
    (circuit_id,) = found(store)
    child = store.circuits.add(circuit(), DIGEST, user="ada", derived_from=circuit_id)
    judge = claimed(store)
    store.claims.succeed(judge, [NewEvaluation("again", circuit_id, report().to_dict())])
    store.circuits.delete(circuit_id)
    with pytest.raises(NotFound, match=circuit_id):
        store.circuits.get(circuit_id)
    assert store.circuits.get(child.id).row.derived_from is None
    assert [result.circuit_id for result in store.jobs.results(claim.job.id)] == [None]
    assert [result.evaluation_id for result in store.jobs.results(judge.job.id)] == [None]
    for table in ("circuit_edges", "circuit_nodes", "evaluations"):
        assert sql(store, f"SELECT * FROM {table} WHERE circuit_id = :id", id=circuit_id) == []


def test_evaluations_stand_beside_the_circuit_newest_first(store: Store) -> None:
    row = store.circuits.add(circuit(), DIGEST, user="ada")
    jobs = []
    for f in (0.5, 0.6, 0.7):
        claim = claimed(store)
        store.claims.succeed(claim, [NewEvaluation("again", row.id, report(f).to_dict())])
        jobs.append(claim.job)
    pages = every_page(lambda cursor: store.circuits.evaluations(row.id, cursor=cursor, limit=2))
    assert [evaluation.job_id for evaluation in pages] == [job.id for job in reversed(jobs)]
    assert [Report.from_dict(evaluation.report) for evaluation in pages] == [report(f) for f in (0.7, 0.6, 0.5)]
    assert pages[0].spec == jobs[0].spec
    (result,) = store.jobs.results(jobs[2].id)
    assert (result.kind, result.circuit_id, result.evaluation_id) == ("evaluation", row.id, pages[0].id)


def test_success_with_a_deleted_circuit_stores_nothing(store: Store) -> None:
    row = store.circuits.add(circuit(), DIGEST, user="ada")
    claim = claimed(store)
    store.circuits.delete(row.id)
    results = [NewCircuit("edited", circuit(), DIGEST), NewEvaluation("again", row.id, report().to_dict())]
    with pytest.raises(NotFound, match=row.id):
        store.claims.succeed(claim, results)
    assert store.jobs.get(claim.job.id).state is State.RUNNING
    assert (found(store), store.jobs.results(claim.job.id)) == ([], ())


def test_circuit_knows_what_it_was_derived_from(store: Store) -> None:
    source = store.circuits.add(circuit(), DIGEST, user="ada")
    claim = claimed(store)
    gone = NewCircuit("orphan", circuit(), DIGEST, derived_from="cir_gone")
    store.claims.succeed(claim, [NewCircuit("edited", circuit(), DIGEST, derived_from=source.id), gone])
    by_key = {row.result_key: row.derived_from for row in store.circuits.list().items}
    assert by_key == {None: None, "edited": source.id, "orphan": None}
    with pytest.raises(NotFound, match="cir_gone"):
        store.circuits.add(circuit(), DIGEST, user="ada", derived_from="cir_gone")


def test_unknown_circuit_is_not_found_whatever_is_asked(store: Store) -> None:
    for ask in (store.circuits.get, store.circuits.edges, store.circuits.evaluations, store.circuits.relabel):
        with pytest.raises(NotFound, match="cir_x"):
            ask("cir_x")
    with pytest.raises(NotFound, match="cir_x"):
        store.circuits.delete("cir_x")


def test_infinite_parameters_are_stored_as_words(store: Store) -> None:
    made = circuit()
    choices = replace(made.provenance.choices, parameters={"thresholds": [float("inf")]})
    provenance: Provenance = replace(made.provenance, choices=choices)
    row = store.circuits.add(replace(made, provenance=provenance), DIGEST, user="ada")
    assert store.circuits.get(row.id).provenance["choices"]["parameters"] == {"thresholds": ["Infinity"]}


def test_models_are_met_once_and_used_again(store: Store) -> None:
    store.models.record(CARD)
    (first,) = store.models.list()
    store.circuits.add(circuit(model=replace(CARD, parity=2e-6)), DIGEST, user="ada")
    twin = replace(CARD, reference="hub:same/weights")
    store.models.record(twin)
    again, other = sorted(store.models.get(CARD.fingerprint), key=lambda row: row.reference != CARD.reference)
    assert (again.reference, again.first_seen, again.card["parity"]) == (CARD.reference, first.first_seen, 2e-6)
    assert again.last_used >= first.last_used
    assert (other.reference, other.fingerprint) == ("hub:same/weights", CARD.fingerprint)
    with pytest.raises(NotFound, match="unseen"):
        store.models.get("unseen")


def test_artefacts_in_use_are_those_of_circuits_and_live_checkpoints(store: Store) -> None:
    claim = claimed(store)
    store.claims.save_checkpoint(claim, CheckpointRef("c1", 1, 1))
    store.claims.save_checkpoint(claim, CheckpointRef("c2", 2, 1))
    row = store.circuits.add(circuit(), DIGEST, user="ada")
    assert store.artefacts_in_use() == {DIGEST, "c2"}
    store.claims.succeed(claim, [])
    store.circuits.delete(row.id)
    assert store.artefacts_in_use() == frozenset()


def test_circuit_of_every_edge_lists_every_edge(store: Store) -> None:
    made = circuit()
    row = store.circuits.add(replace(made, kept=made.graph.legal.copy()), DIGEST, user="ada")
    edges = every_page(lambda cursor: store.circuits.edges(row.id, cursor=cursor))
    assert {f"{edge.sender}->{edge.receiver}" for edge in edges} == set(map(GRAPH.edge_name, GRAPH.edges()))
