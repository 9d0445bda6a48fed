"""A circuit is asked for over HTTP, found, judged, stored, and still alive afterwards."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from acceptance_kit import N_HELD_OUT, N_PROMPTS, Stack, assert_same, pairs, quick, task, write_model
from store_samples import circuit as circuit_of_another_model

from acdc.client import Job

SVG = "{http://www.w3.org/2000/svg}svg"


def test_job_tells_its_way_from_queue_to_result(stack: Stack, found: Job) -> None:
    events = list(stack.client.events(found.id))
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.data["state"] for event in events if event.kind == "state"] == ["queued", "running", "succeeded"]
    assert list(stack.client.events(found.id, after=2)) == events[2:]


def test_found_circuit_carries_scores_judgement_and_provenance(stack: Stack, found: Job) -> None:
    circuit = stack.circuit(found)
    assert circuit.graph.n_edges == 8 + 5 + 8 * 6 + 10 + 11
    assert circuit.tested.sum() == circuit.graph.n_edges
    assert circuit.report is not None
    assert {point.split for point in circuit.report.points} == {"search", "held_out"}
    assert circuit.report.behaviour.verdict == "shown"
    assert circuit.report.k_star is not None
    assert circuit.report.k_star.met
    assert circuit.n_edges == circuit.report.k_star.point.connected
    made = circuit.provenance
    assert (made.task.n_search, made.task.n_held_out, made.task.n_dropped) == (N_PROMPTS, N_HELD_OUT, 0)
    assert not set(made.task.groups_search) & set(made.task.groups_held_out)
    assert made.model.parity is not None
    assert made.model.parity <= 1e-4
    info = stack.client.circuit(found.circuit_ids[0])
    assert (info.n_edges, info.n_edges_total) == (circuit.n_edges, circuit.graph.n_edges)
    assert len(stack.client.edges(info.id)) == circuit.n_edges


def test_same_spec_gives_the_same_circuit(stack: Stack, found: Job, model: Path) -> None:
    again = stack.succeeded(stack.client.submit(quick(model)))
    assert again.circuit_ids != found.circuit_ids
    assert_same(stack.circuit(again), stack.circuit(found))


def test_lists_find_the_circuit_by_what_is_in_it(stack: Stack, circuit_id: str, model: Path) -> None:
    [edge, *_] = stack.client.edges(circuit_id)
    wanted = {"model": f"path:{model}", "method": "eap-ig-inputs", "edge": f"{edge.sender}->{edge.receiver}"}
    assert circuit_id in [circuit.id for circuit in stack.client.circuits(tag="acceptance", **wanted)]
    assert not stack.client.circuits(tag="acceptance", task="ioi")


# -- evaluated again ---------------------------------------------------------------------------------------------------


def test_another_ablation_is_an_evaluation_of_the_same_circuit(stack: Stack, circuit_id: str) -> None:
    job = stack.succeeded(stack.client.evaluate(circuit_id, {"ablation": "zero"}))
    [result] = job.results
    assert (result.kind, result.circuit_id) == ("evaluation", circuit_id)
    own = stack.client.circuit(circuit_id).raw["report"]
    [report] = [one.report for one in stack.client.evaluations(circuit_id) if one.job_id == job.id]
    assert report.metric_full == pytest.approx(own["metric_full"], rel=1e-4)
    assert report.metric_empty != pytest.approx(own["metric_empty"], rel=1e-2)


def test_another_size_is_a_circuit_of_its_own(stack: Stack, circuit_id: str) -> None:
    job = stack.succeeded(stack.client.evaluate(circuit_id, {"selection": {"size": 20, "rule": "absolute"}}))
    circuit, source = stack.circuit(job), stack.client.circuit_file(circuit_id)
    assert (circuit.selected.asked_for, circuit.selected.rule) == (20, "absolute")
    assert circuit.n_edges <= 20
    assert (circuit.scores == source.scores).all()
    assert stack.client.circuit(job.circuit_ids[0]).raw["derived_from"] == circuit_id


def test_edges_are_taken_out_and_heads_put_in(stack: Stack, circuit_id: str) -> None:
    first = stack.client.edges(circuit_id)[0]
    name = f"{first.sender}->{first.receiver}"
    source = stack.client.circuit_file(circuit_id)
    absent = [sender.name for sender in source.graph.senders if sender.name not in source.nodes()]
    edit = {"remove_edges": [name], "add_nodes": absent[:1]}
    circuit = stack.circuit(stack.succeeded(stack.client.evaluate(circuit_id, {"edit": edit})))
    edge = source.graph.edge(name)
    assert not circuit.kept[edge.sender, edge.receiver]
    assert set(absent[:1]) <= set(circuit.nodes())


def test_hypothesis_is_judged_and_stored(stack: Stack, model: Path) -> None:
    spec = {"model": f"path:{model}", "task": task(), "nodes": ["0.1", "1.3", "mlp1"], "evaluation": {"grid": [1.0]}}
    circuit = stack.circuit(stack.succeeded(stack.client.hypothesis(spec)))
    assert circuit.provenance.choices.method == "hypothesis"
    assert set(circuit.nodes()) == {"embed", "0.1", "1.3", "mlp1"}
    assert circuit.report is not None
    assert [point.split for point in circuit.report.kept] == ["search", "held_out"]


def test_hypothesis_on_another_graph_fails_with_every_name(stack: Stack, model: Path) -> None:
    named = {"nodes": ["9.9", "mlp0", "mlp7"], "edges": ["embed->mlp1", "embed->mlp99"]}
    said = stack.failed(stack.client.hypothesis({"model": f"path:{model}", "task": task(), **named}))
    assert said.startswith("invalid_task")
    for name in ("9.9", "mlp7", "mlp99"):
        assert name in said
    assert "mlp0:" not in said
    assert "mlp1:" not in said


def test_circuit_of_another_graph_is_not_evaluated(stack: Stack, model: Path) -> None:
    foreign = stack.client.import_file(circuit_of_another_model().to_bytes())
    said = stack.failed(stack.client.evaluate(foreign.id, {"model": f"path:{model}", "task": task()}))
    assert "another graph" in said


def test_damaged_weights_fail_the_job_and_the_next_one_runs(stack: Stack, model: Path, tmp_path: Path) -> None:
    write_model(tmp_path, spoil=True)
    said = stack.failed(stack.client.submit(quick(tmp_path)))
    assert "layers.1.mlp.up_proj.weight has 1 values that are NaN" in said
    stack.succeeded(stack.client.submit({**quick(model), "method": "eap"}))


# -- tried, drawn, exported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrupt", [None, "zzzzefgh"])
def test_prompt_is_tried_on_model_circuit_complement_and_random_circuit(
    stack: Stack, circuit_id: str, corrupt: str | None
) -> None:
    [result] = stack.succeeded(stack.client.try_prompt(circuit_id, "ijklefgh", corrupt, top=4)).results
    columns = result.data["columns"]
    assert set(columns) == {"model", "circuit", "complement", "random"}
    for column in columns.values():
        probabilities = [cell["probability"] for cell in column]
        assert len(column) == 4
        assert probabilities == sorted(probabilities, reverse=True)
    assert columns["circuit"] != columns["complement"]
    assert ("resample" in result.data["ablation"]) == (corrupt is not None)


def test_prompts_of_unequal_length_are_refused_before_any_is_run(stack: Stack, circuit_id: str) -> None:
    job = stack.client.try_prompt(circuit_id, "ijklefgh", "efg")
    assert "8 tokens and the corrupt one 3" in stack.failed(job)
    progress = stack.client.job(job.id).progress
    assert progress is None or progress.phase not in ("building the task", "parity", "clean and ablated runs")


def test_exported_file_comes_back_to_the_byte(stack: Stack, circuit_id: str) -> None:
    data = stack.client.export(circuit_id)
    copy = stack.client.import_file(data, name="a copy", tags=["copied"])
    assert stack.client.export(copy.id) == data
    assert copy.name == "a copy"
    assert [circuit.id for circuit in stack.client.circuits(tag="copied")] == [copy.id]


def test_pictures_are_drawn(stack: Stack, circuit_id: str) -> None:
    for text in (stack.client.graph_svg(circuit_id), stack.client.curve_svg(circuit_id)):
        assert ElementTree.fromstring(text).tag == SVG


def test_rows_that_cannot_be_used_are_dropped_and_told(stack: Stack, model: Path) -> None:
    rows = pairs(N_PROMPTS + N_HELD_OUT)
    rows[4] = {**rows[4], "corrupt": rows[4]["corrupt"] + "gg"}
    spec = {**quick(model), "task": {**task(), "pairs": rows}, "method": "eap"}
    job = stack.succeeded(stack.client.submit(spec))
    assert stack.circuit(job).provenance.task.n_dropped == 1
    assert any("row 5 dropped" in line.line or "row 4 dropped" in line.line for line in stack.client.logs(job.id))
