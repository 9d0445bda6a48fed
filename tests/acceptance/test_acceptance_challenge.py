"""A circuit challenged through the running service: settings, controls, what survives, and where it is shown."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from acceptance_kit import Stack, quick
from typer.testing import CliRunner

from acdc.challenge import Challenge
from acdc.circuit import Circuit
from acdc.cli.app import app


@pytest.fixture(scope="module")
def own_circuit(stack: Stack, model: Path) -> str:
    """One that no other test challenges."""
    return stack.succeeded(stack.client.submit(quick(model))).circuit_ids[0]


@pytest.fixture(scope="module")
def challenged(stack: Stack, own_circuit: str) -> Challenge:
    circuit_id = own_circuit
    job = stack.succeeded(stack.client.challenge(circuit_id, {"resamples": 8}))
    assert [result.key for result in job.results][:1] == ["challenge"]
    [made] = stack.client.challenges(circuit_id)
    assert made.job_id == job.id
    return made.challenge


def test_every_kind_of_setting_was_tried_and_controls_beside(challenged: Challenge) -> None:
    assert {one.kind for one in challenged.tried} >= {"own", "one", "factorial"}
    names = [one.name for one in challenged.tried]
    assert names[0] == "as it was found"
    assert {"ablation zero", "ablation mean", "metric prob_diff", "prompts drawn again, 2"} <= set(names)
    assert len(names) == len(set(names))
    assert {control.name.split()[0] for control in challenged.controls} == {"answers", "model", "circuit", "matched"}
    assert challenged.tried[0].jaccard == 1, "the same search finds the same circuit"
    assert challenged.n_searches > 10


def test_it_stands_on_the_card_and_is_drawn(
    stack: Stack, challenged: Challenge, own_circuit: str, tmp_path: Path
) -> None:
    said = challenged.sentence
    assert said[1:] in stack.client.card(own_circuit).replace("\\", "")
    picture = tmp_path / "challenge.svg"
    stack.ask("circuits", "show", own_circuit, "--challenge-svg", str(picture))
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_what_survived_is_a_circuit_of_its_own(stack: Stack, challenged: Challenge, own_circuit: str) -> None:
    [made] = stack.client.challenges(own_circuit)
    assert made.core not in (None, own_circuit)
    core = stack.client.circuit(made.core or "")
    assert core.n_edges == challenged.core_edges <= challenged.n_edges
    assert core.raw["derived_from"] == own_circuit
    assert "not evaluated" not in stack.client.card(core.id).lower()
    assert stack.client.evaluations(own_circuit) == []


def test_the_command_line_challenges_and_says_what_came_out(stack: Stack, circuit_id: str) -> None:
    words = ["--set", "vary=ablation,groups", "--set", "search=false", "--set", "controls=false", "--wait"]
    said = stack.ask("challenge", circuit_id, *words).output
    assert "in [0.8, 1.2] in" in said
    assert "ablation zero" in said
    assert "prob_diff" not in said
    shown = stack.ask("circuits", "show", circuit_id).output
    assert "challenge  f in [0.8, 1.2] in" in shown
    assert stack.ask_json("circuits", "show", circuit_id)["challenges"][0]["tried"][0]["kind"] == "own"
    assert "Under other ablations" in stack.client.card_page(circuit_id), "its card can still be read"


def test_a_challenge_run_here_leaves_what_the_service_shows(
    stack: Stack, challenged: Challenge, own_circuit: str, tmp_path: Path
) -> None:
    """And the core with its card."""
    source, spec, out = tmp_path / "found.safetensors", tmp_path / "spec.yaml", tmp_path / "out"
    stack.ask("circuits", "export", own_circuit, "--out", str(source))
    spec.write_text("{kind: challenge, resamples: 8}")
    said = CliRunner().invoke(app, ["run", str(spec), "--source", str(source), "--out", str(out)])
    assert said.exit_code == 0, said.output
    assert (out / "challenge.svg").read_text() == stack.client.challenge_svg(own_circuit)
    text = (out / "challenge.md").read_text()
    sections = [line for line in stack.client.card(own_circuit).splitlines() if line.startswith(("## Challenge", "| "))]
    assert len(sections) > 30
    assert [line for line in sections if line not in text] == []
    assert "<h2>Challenge</h2>" in (out / "challenge.html").read_text()
    core = Circuit.load(out / "core.circuit.safetensors")
    assert core.n_edges == challenged.core_edges
    assert {"core.svg", "core.html"} <= {file.name for file in out.iterdir()}
    assert all(str(out / f"challenge.{kind}") in said.output.replace("\n", "") for kind in ("svg", "html", "md"))
