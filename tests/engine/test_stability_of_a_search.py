"""Stability on the whole way from a spec to a circuit: measured where a method gives scores per example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_library import SMALL, rows, words_tokenizer
from tiny_transformers import tiny

import acdc
from acdc.circuit import Circuit
from acdc.errors import CircuitFileError, GraphMismatch
from acdc.models.loading import describe_loaded
from acdc.pipeline import run_on
from acdc.progress import Quiet
from acdc.report import Report
from acdc.spec import parse_job, with_defaults_of


def discover(**spec: Any) -> Circuit:
    fields = {"evaluation": SMALL, "task": {"prompts": 40, "held_out": 8}, "selection": {"size": 0.3}, **spec}
    return acdc.discover(tiny("llama", torch.float32), words_tokenizer(), rows(60), **fields)


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return discover(method={"name": "eap-ig-inputs", "steps": 2, "objective": ["logit_diff", "kl_divergence"]})


def stability(circuit: Circuit) -> Any:
    assert circuit.report is not None
    return circuit.report.stability


def test_a_search_by_attribution_measures_it(circuit: Circuit) -> None:
    found = stability(circuit)
    assert found.verdict in ("stable", "unstable")
    assert (found.n_examples, found.n_units, found.unit) == (40, 40, "example")  # five groups are too few to draw
    assert 0 < found.jaccard < 1
    assert 0 < found.jaccard_with_kept < 1
    assert 0 <= found.interval[0] < found.split_half < found.interval[1] <= 1
    assert circuit.inclusion is not None
    assert found.kept_in_half == (circuit.inclusion[circuit.kept] > 0.5).sum()
    assert circuit.inclusion[circuit.kept].mean() > circuit.inclusion[circuit.graph.legal & ~circuit.kept].mean()


def test_the_same_spec_gives_the_same_stability(circuit: Circuit) -> None:
    method = {"name": "eap-ig-inputs", "steps": 2, "objective": ["logit_diff", "kl_divergence"]}
    again = discover(method=method)
    assert stability(again) == stability(circuit)
    assert again.inclusion is not None
    assert np.array_equal(again.inclusion, circuit.inclusion)


def test_a_method_with_decisions_says_that_it_gives_no_scores_per_example() -> None:
    found = acdc.discover(
        tiny("toy", torch.float32),
        words_tokenizer(),
        rows(12),
        evaluation=SMALL,
        task={"prompts": 2, "held_out": 2},
        method={"name": "acdc", "thresholds": [0.1]},
    )
    assert stability(found).sentence == "not measured: the method gives no per-example scores"
    assert found.inclusion is None


def test_an_evaluation_refers_to_the_report_of_the_search(circuit: Circuit) -> None:
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, {"kind": "evaluate", "circuit": "stored"}))
    loaded = describe_loaded(tiny("llama", torch.float32), words_tokenizer())
    (result,) = run_on(loaded, spec, Quiet(), circuit)
    assert result.circuit is not None
    assert stability(result.circuit).verdict == "not measured"
    assert "report of the search" in stability(result.circuit).reason


def test_a_report_from_before_stability_was_measured_is_read(circuit: Circuit) -> None:
    assert circuit.report is not None
    data = circuit.report.to_dict()
    del data["stability"]
    assert Report.from_dict(data).stability.verdict == "not measured"
    data = circuit.report.to_dict()
    assert Report.from_dict(data) == circuit.report
    del data["stability"]["split_half"], data["stability"]["interval"]
    before_halves = Report.from_dict(data).stability
    assert before_halves == replace(stability(circuit), split_half=None, interval=None)
    assert "halves" not in before_halves.sentence
    old = replace(circuit, inclusion=None)
    assert Circuit.from_bytes(old.to_bytes()).inclusion is None


def test_inclusion_that_is_no_probability_of_an_edge_is_refused(circuit: Circuit) -> None:
    assert circuit.inclusion is not None
    everywhere = np.full_like(circuit.inclusion, 0.5)
    for wrong in (circuit.inclusion + 1, everywhere, circuit.inclusion * np.nan):
        with pytest.raises(CircuitFileError, match="inclusion"):
            replace(circuit, inclusion=wrong)
    with pytest.raises(GraphMismatch):
        replace(circuit, inclusion=circuit.inclusion[:-1])
