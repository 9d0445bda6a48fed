"""Choices that are right alone and not together: all of them are told at once, before a job exists."""

from __future__ import annotations

from typing import Any

import pytest

from acdc.errors import SpecError
from acdc.spec import parse_job


def faults(spec: dict[str, Any], *, is_request: bool = True) -> dict[str, str]:
    """What is told of each place; of several faults there, one after the other."""
    try:
        parse_job(spec, is_request=is_request)
    except SpecError as error:
        told: dict[str, str] = {}
        for fault in error.faults:
            told[fault.where] = f"{told[fault.where]}; {fault.message}" if fault.where in told else fault.message
        return told
    return {}


def test_every_method_of_an_ensemble_is_told_all_that_it_cannot_do() -> None:
    ensemble = {"name": "ensemble", "methods": ["node-ap", "gim", "exact"], "consistency": 0.9}
    told = faults({"method": ensemble, "positions": "roles", "metric": "kl_divergence"})
    assert set(told) == {"method.methods.0", "method.methods.1", "method.methods.2"}
    no_examples, no_roles, no_slope = "`consistency` needs", "does not split edges by position", "gradient at the clean"
    assert [what in told["method.methods.0"] for what in (no_examples, no_roles, no_slope)] == [True, True, True]
    assert [what in told["method.methods.1"] for what in (no_examples, no_roles, no_slope)] == [False, False, True]
    assert [what in told["method.methods.2"] for what in (no_examples, no_roles, no_slope)] == [True, True, False]


def test_what_members_of_an_ensemble_may_not_choose_is_told_of_each() -> None:
    methods = [
        {"name": "eap", "objective": "prob_diff"},
        {"name": "exact", "receivers": 3},
        {"name": "edge-pruning", "edges": 0.5, "warm_start": 0.1},
    ]
    told = faults({"method": {"name": "ensemble", "methods": methods}})
    assert set(told) == {"method.methods.0.objective", "method.methods.1.receivers", "method.methods.2.edges"}


def test_all_that_acdc_cannot_combine_is_told_at_once() -> None:
    acdc = {
        "name": "acdc",
        "edges": 5,
        "thresholds": [0.1],
        "validation": 3,
        "objective": "accuracy",
        "warm_start": 0.1,
        "stages": [8],
    }
    told = faults({"method": acdc})
    assert set(told) == {"method.edges", "method.validation", "method.warm_start", "method.stages"}


def test_faults_of_other_fields_are_told_beside() -> None:
    told = faults({"method": {"name": "acdc", "thresholds": []}, "metric": "nix", "task": {"prompts": 0}})
    assert set(told) == {"method.edges", "metric", "task.prompts"}


@pytest.mark.parametrize(
    ("spec", "where", "said"),
    [
        (
            {"method": {"name": "edge-pruning", "edges": 0.5, "warm_start": 0.1}},
            "method.edges",
            "asks for 0.5 of the edges and `warm_start` leaves 0.1 of them",
        ),
        (
            {"method": {"name": "acdc", "thresholds": [0.1, 0.2], "validation": 200}, "task": {"prompts": 16}},
            "method.validation",
            "sets 200 prompts aside, and the search has 16",
        ),
        (
            {"method": {"name": "acdc", "edges": 9, "validation": 2}},
            "method.validation",
            "chooses among several thresholds",
        ),
        ({"method": {"name": "eap", "objective": ["logit_diff", "logit_diff"]}}, "method.objective", "named twice"),
        ({"selection": {"size": 3, "faithfulness": 0.5}}, "selection", "either `size` or `faithfulness`"),
    ],
)
def test_what_a_search_would_refuse_is_refused_with_the_spec(spec: dict[str, Any], where: str, said: str) -> None:
    for is_request in (True, False):
        told = faults(spec, is_request=is_request)
        assert list(told) == [where]
        assert said in told[where]


@pytest.mark.parametrize(
    "method",
    [
        {"name": "edge-pruning", "edges": 0.1, "warm_start": 0.1},
        {"name": "edge-pruning", "edges": 50, "warm_start": 0.1},
        {"name": "acdc", "thresholds": [0.1, 0.2], "validation": 127},
        {"name": "ensemble", "methods": ["eap", "gim"], "consistency": 0.9},
    ],
)
def test_what_goes_together_is_taken(method: dict[str, Any]) -> None:
    assert faults({"method": method}) == {}


def test_an_evaluation_is_told_all_at_once_too() -> None:
    selection = {"faithfulness": 0.5}
    told = faults({"kind": "evaluate", "selection": selection, "edit": {"add_nodes": ["9.9"]}, "metric": "nix"})
    assert set(told) == {"circuit", "selection.faithfulness", "metric"}
    both = {"kind": "evaluate", "circuit": "c", "hypothesis": {"nodes": ["9.9"]}}
    assert set(faults(both)) == {"circuit"}


ONE_THRESHOLD, BISECTED, SEVERAL = "acdc", {"name": "acdc", "edges": 100}, {"name": "acdc", "thresholds": [0.1, 0.01]}


@pytest.mark.parametrize(
    ("method", "which"), [(ONE_THRESHOLD, "at one threshold"), (BISECTED, "that bisects for `edges`")]
)
@pytest.mark.parametrize("choice", [{"size": 20}, {"rule": "absolute"}, {"faithfulness": 0.5}])
def test_a_search_that_decides_on_every_edge_refuses_to_have_a_ranking_cut(
    method: object, which: str, choice: dict[str, Any]
) -> None:
    (where, message), *others = faults({"method": method, "selection": choice}).items()
    assert not others
    assert where == f"selection.{next(iter(choice))}"
    assert f"acdc {which} decides on every edge" in message
    assert "several `thresholds`" in message
    assert faults({"method": SEVERAL, "selection": choice}) == {}


def test_who_bisects_for_edges_is_not_told_to_do_so() -> None:
    assert "give `method.edges`" in faults({"method": ONE_THRESHOLD, "selection": {"size": 20}})["selection.size"]
    assert "give `method.edges`" not in faults({"method": BISECTED, "selection": {"size": 20}})["selection.size"]


def test_a_hypothesis_is_not_cut() -> None:
    asked = {"kind": "evaluate", "hypothesis": {"nodes": ["9.9"]}}
    assert list(faults({**asked, "selection": {"size": 5}})) == ["selection.size"]
    assert list(faults({**asked, "selection": {"rule": "signed"}})) == ["selection.rule"]
    assert faults(asked) == {}


def test_a_rule_orders_the_edges_of_a_stored_circuit_only_for_a_size() -> None:
    asked = {"kind": "evaluate", "circuit": "c"}
    assert list(faults({**asked, "selection": {"rule": "signed"}})) == ["selection.rule"]
    assert faults({**asked, "selection": {"rule": "signed", "size": 5}}) == {}
    assert faults({"selection": {"rule": "signed"}}) == {}, "a search looks for k* by it"


@pytest.mark.parametrize(
    "spec",
    [
        {"method": ONE_THRESHOLD, "selection": {"size": 20, "rule": "absolute"}},
        {"kind": "evaluate", "hypothesis": {"nodes": ["9.9"]}, "selection": {"size": 5, "rule": "signed"}},
    ],
)
def test_a_circuit_that_was_stored_with_an_idle_choice_can_be_read_again(spec: dict[str, Any]) -> None:
    assert faults(spec)
    assert faults(spec, is_request=False) == {}
