"""Models whose circuit is known: the port of compiled programs, the truths stored, and that they can be found again."""

from __future__ import annotations

from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch

from acdc.evaluation.truth import siit, tracr
from acdc.evaluation.truth.cases import case_named, cases, prompts_of
from acdc.evaluation.truth.exhaustive import Outputs, Truth, find_truth
from acdc.evaluation.truth.high_level import HIGH_LEVEL

TRAINER = Path(__file__).resolve().parents[2] / "benchmarks" / "truth"
EXACT = [(case.name, ablation) for case in cases() if case.family != "siit" for ablation in case.ablations]
SUFFICIENT = [(name, ablation) for name, ablation in EXACT if name != "gates/or"]
TRAINED = [case.name for case in cases() if case.family == "siit"]


def test_there_are_as_many_known_circuits_as_promised() -> None:
    """And every model that passed its training takes part, none that did not."""
    count = Counter(case.family for case in cases())
    assert count["hand-wired"] == 2
    assert count["gates"] == 2
    assert count["tracr"] >= 10
    assert count["siit"] >= 8
    assert set(siit.trained()) == set(HIGH_LEVEL), "every program was tried"
    accepted = {name for name, model in siit.trained().items() if model.worst >= 0.995}
    assert {f"siit/{name}" for name in accepted} == set(TRAINED)
    assert {path.stem for path in siit.DATA.glob("*.safetensors")} == accepted


@pytest.mark.parametrize("name", sorted(tracr.programs()))
def test_a_compiled_program_runs_here_as_tracr_runs_it(name: str) -> None:
    program = tracr.programs()[name]
    model = tracr.model_of(program)
    with np.load(tracr.DATA / f"{name}.npz") as file:
        prompts, wanted = torch.from_numpy(file["reference_prompts"]).long(), file["reference_residuals"]
    with torch.no_grad():
        residuals = model.transformer(prompts).last_hidden_state[..., : wanted.shape[-1]].numpy()
    assert np.abs(residuals).max() > 0.5, "an empty port would agree with an empty reference"
    assert np.abs(residuals - wanted).max() < 1e-6


@pytest.mark.parametrize(("name", "ablation"), [*SUFFICIENT])
def test_cutting_every_edge_finds_the_circuit_that_is_stored(name: str, ablation: str) -> None:
    case = case_named(name)
    t = case.transformer()
    found, stored = find_truth(t, prompts_of(case, t, ablation)), case.truth(t.graph, ablation)
    assert t.graph.names_of(found.true) == t.graph.names_of(stored.true)
    assert t.graph.names_of(found.stand_ins) == t.graph.names_of(stored.stand_ins)
    assert t.graph.names_of(found.counterweights) == t.graph.names_of(stored.counterweights)


@pytest.mark.parametrize(("name", "ablation"), EXACT)
def test_the_stored_circuit_alone_leaves_every_output_as_it_is(name: str, ablation: str) -> None:
    case = case_named(name)
    t = case.transformer()
    truth = case.truth(t.graph, ablation)
    outputs = Outputs(t, prompts_of(case, t, ablation))
    assert not outputs.differ(truth.true[None])[0]
    assert outputs.differ(np.zeros_like(truth.true)[None])[0], "an empty circuit must not do as well"


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_edges_that_stand_in_for_each_other_are_told_from_true_ones(ablation: str) -> None:
    """Of an OR whose inputs are both on either way is enough, and one is needed."""
    case = case_named("gates/or")
    t = case.transformer()
    found, designed = find_truth(t, prompts_of(case, t, ablation)), case.truth(t.graph, ablation)
    assert t.graph.names_of(found.true) == ["mlp0->logits"]
    assert t.graph.names_of(found.true | found.stand_ins) == t.graph.names_of(designed.true)


@pytest.mark.parametrize(("name", "ablation"), SUFFICIENT)
def test_the_stored_circuit_alone_needs_every_edge_that_it_has(name: str, ablation: str) -> None:
    case = case_named(name)
    t = case.transformer()
    true = case.truth(t.graph, ablation).true
    assert t.graph.names_of(Outputs(t, prompts_of(case, t, ablation)).needed_in(true)) == t.graph.names_of(true)


def test_an_edge_that_the_model_needs_only_against_another_edge_is_not_scored() -> None:
    """Without q or k a head of more-opened counts BOS too. If one of the two that are compared does so, that changes
    what is said; if both do, it does not."""
    case = case_named("tracr/more-opened")
    t = case.transformer()
    truth, outputs = case.truth(t.graph, "zero"), Outputs(t, prompts_of(case, t, "zero"))
    counterweights = t.graph.names_of(truth.counterweights)
    assert counterweights == ["embed->1.1.q", "embed->1.1.k"]
    for name in counterweights:
        alone, with_other = (t.graph.mask_of_edges(cut) for cut in ([name], [name, name.replace("1.1", "1.0")]))
        assert outputs.differ(np.stack([t.graph.legal & ~alone, t.graph.legal & ~with_other])).tolist() == [True, False]


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_still_passes_what_it_was_accepted_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TRAINER)
    import train_siit

    program, stored = (of[name.removeprefix("siit/")] for of in (HIGH_LEVEL, siit.trained()))
    judged = train_siit.verdict(siit.model_of(program), program, stored.seed, stored.steps)
    assert judged.is_accepted
    assert astuple(judged) == pytest.approx(astuple(stored), abs=1e-3), "rounding may turn two of 2000 prompts"


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_and_its_true_edges_alone_answer_the_benchmarks_prompts(name: str) -> None:
    case = case_named(name)
    t = case.transformer()
    prompts = prompts_of(case, t, "resample")
    truth = case.truth(t.graph, "resample")
    outputs = Outputs(t, prompts)
    pairs = case.pairs()
    wanted = [pairs[example].answers[0][0] for p in prompts for example in p.batch.examples]
    for mask in (t.graph.legal, truth.true):
        said = outputs.logits(mask[None])[0].argmax(-1)
        assert np.mean(said.numpy() == wanted) >= 0.99


def test_stand_ins_and_counterweights_are_redundant() -> None:
    graph = case_named("gates/or").transformer().graph
    true, stand_in, counterweight = (graph.mask_of_edges([name]) for name in ("mlp0->logits", "0.0->mlp0", "0.1->mlp0"))
    truth = Truth(true, stand_in, counterweight)
    assert graph.names_of(truth.redundant) == ["0.0->mlp0", "0.1->mlp0"]
