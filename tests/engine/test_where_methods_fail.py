"""What the pages of the methods say that they fail on, shown on gates whose circuit is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from acdc.discovery import METHODS
from acdc.discovery.ensemble import Member
from acdc.discovery.problem import Found, Problem
from acdc.evaluation.truth.cases import case_named, prompts_of
from acdc.metrics import METRICS
from acdc.progress import Quiet
from acdc.selection import rank

ARGUMENTS: dict[str, dict[str, Any]] = {
    "eap-ig-inputs": {"steps": 10},
    "eap-ig-activations": {"steps": 5},
    "eap-ig-qk": {"steps": 10},
    "mask-ig": {"steps": 10},
    "node-ap-ig": {"steps": 10},
    "relp": {"attention": "gradient"},
    "gim": {"temperature": 2.0},
}
ONE_LINEAR_STEP = ("eap", "relp", "gim")
INTEGRATED = ("eap-ig-inputs", "eap-ig-activations", "eap-ig-qk", "mask-ig")


def gate(name: str, ablation: str, metric: str = "logit_diff") -> Problem:
    return known(f"gates/{name}", ablation, metric)


def known(name: str, ablation: str, metric: str = "logit_diff") -> Problem:
    case = case_named(name)
    t = case.transformer()
    return Problem(t, prompts_of(case, t, ablation), METRICS[metric], 2**30)


def find(problem: Problem, method: str, **arguments: Any) -> Found:
    return METHODS[method](problem, Quiet(), **{**ARGUMENTS.get(method, {}), **arguments})[0]


def by_edge(problem: Problem, found: Found) -> Mapping[str, float]:
    graph = problem.t.graph
    return dict(zip(graph.names_of(graph.legal), graph.in_order(found.scores).tolist(), strict=True))


@pytest.mark.parametrize("method", [*ONE_LINEAR_STEP, "node-ap", "exact"])
def test_one_step_from_the_clean_run_sees_no_input_of_an_or(method: str) -> None:
    problem = gate("or", "resample")
    scores = by_edge(problem, find(problem, method))
    assert scores["0.0->mlp0"] == scores["0.1->mlp0"] == 0
    assert scores["mlp0->logits"] > 0


@pytest.mark.parametrize("method", INTEGRATED)
def test_integrated_gradients_see_both_inputs_of_an_or(method: str) -> None:
    problem = gate("or", "resample")
    scores = by_edge(problem, find(problem, method))
    assert scores["0.0->mlp0"] == pytest.approx(scores["0.1->mlp0"])
    assert scores["0.0->mlp0"] > 0.1


def test_acdc_keeps_exactly_one_input_of_an_or() -> None:
    problem = gate("or", "resample", "kl_divergence")
    found = find(problem, "acdc", thresholds=(0.01,), rule="signed")
    assert found.kept is not None
    assert len({"0.0->mlp0", "0.1->mlp0"} & set(problem.t.graph.names_of(found.kept))) == 1


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "eap-ig-activations", "mask-ig"])
def test_attention_as_sharp_as_an_index_hides_queries_and_keys_from_gradients(method: str) -> None:
    problem = gate("and", "zero")
    assert by_edge(problem, find(problem, "exact"))["embed->0.0.q"] > 0.5
    scores = by_edge(problem, find(problem, method))
    assert abs(scores["embed->0.0.q"]) + abs(scores["embed->0.0.k"]) < 1e-15


def test_attention_computed_anew_does_not_see_that_its_change_is_undone_later() -> None:
    problem = known("tracr/more-opened", "mean")
    found, cut = (by_edge(problem, find(problem, method)) for method in ("eap-ig-qk", "exact"))
    assert abs(cut["embed->1.0.k"]) < 1e-6
    assert found["embed->1.0.k"] > found["mlp0->1.1.v"]
    assert cut["mlp0->1.1.v"] > 1


def test_gim_sees_of_such_attention_no_more_than_a_trace() -> None:
    problem = gate("and", "zero")
    scores = by_edge(problem, find(problem, "gim"))
    assert 0 < scores["embed->0.0.q"] < 1e-9 * max(scores.values())


@pytest.mark.parametrize(("gate_name", "ablation"), [("or", "resample"), ("and", "zero")])
@pytest.mark.parametrize("method", ["node-ap", "node-ap-ig"])
def test_between_two_nodes_that_count_every_edge_counts(method: str, gate_name: str, ablation: str) -> None:
    problem = gate(gate_name, ablation)
    assert by_edge(problem, find(problem, "exact"))["embed->mlp0"] == 0
    scores = by_edge(problem, find(problem, method))
    assert scores["embed->mlp0"] == scores["mlp0->logits"] == max(scores[e] for e in scores if e.endswith("mlp0"))


def test_information_flow_cannot_tell_a_head_that_nobody_hears() -> None:
    problem = gate("or", "resample")
    scores = by_edge(problem, find(problem, "information-flow-routes"))
    assert scores["embed->0.2.v"] == scores["embed->0.1.v"] == scores["embed->0.1.q"]
    assert scores["0.2->mlp0"] == scores["0.1->mlp0"]


def test_edge_pruning_leaves_other_edges_open_under_another_seed() -> None:
    problem = gate("or", "resample", "kl_divergence")
    arguments = {"edges": 3, "steps": 300, "rate": 0.8, "penalty_rate": 0.8, "warm_start": None}
    found = [find(problem, "edge-pruning", mask_seed=seed, **arguments) for seed in (0, 1)]
    first, second = (rank(problem.t.graph, one.scores, one.tested, "signed").taken(3) for one in found)
    assert not np.array_equal(first, second)


def test_an_ensemble_is_blind_to_what_all_its_methods_are_blind_to() -> None:
    problem = gate("or", "resample")
    methods = [Member(name, METHODS[name], ARGUMENTS.get(name, {})) for name in ONE_LINEAR_STEP]
    found = find(problem, "ensemble", methods=methods, ranks="signed", consistency=None, resample_seed=0)
    scores = by_edge(problem, found)
    assert scores["0.0->mlp0"] == scores["0.1->mlp0"] == 0
