"""What a challenge will try, as far as its specs tell."""

from __future__ import annotations

from typing import Any

import pytest

from acdc.challenge import NotVaried
from acdc.challenge_settings import Variation, not_varied, runs_of, settings_of
from acdc.spec import ChallengeSpec, DiscoverSpec, parse_job

BOTH = ["logit_diff", "kl_divergence"]
PAIRS = {"name": "custom", "pairs": [{"clean": "a b", "corrupt": "c b", "answers": [" d"]}]}
UNUSED = "under zero ablation nothing is taken from corrupt prompts"


def job(method: Any, **more: Any) -> DiscoverSpec:
    spec = parse_job({"task": "ioi", "method": method, **more})
    assert isinstance(spec, DiscoverSpec)
    return spec


def asked(**more: Any) -> ChallengeSpec:
    spec = parse_job({"kind": "challenge", "circuit": "c", **more})
    assert isinstance(spec, ChallengeSpec)
    return spec


def settings(method: Any, rule: str = "signed", **more: Any) -> list[Variation]:
    return settings_of(asked(**more), job(method), rule)


def sharing(method: Any, rule: str = "signed") -> dict[str, str]:
    """Setting -> the first one with the same search, where that is another."""
    first: dict[str | None, str] = {}
    searched = [one for one in settings(method, rule) if one.searches]
    found = [(one.name, first.setdefault(one.search_key, one.name)) for one in searched]
    return {name: of for name, of in found if name != of}


METRICS = ("prob_diff", "answer_logprob", "kl_divergence")
OF_METRIC = {f"metric {metric}": "as it was found" for metric in METRICS}
FACTORIAL = {
    "zero, kl_divergence": "ablation zero",
    "mean, kl_divergence": "ablation mean",
    "s2_io_flip, kl_divergence": "corruption s2_io_flip",
}


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("acdc", "decisions"),
        ("edge-pruning", "signed"),
        ({"name": "eap-ig-inputs", "objective": BOTH}, "signed"),
        ({"name": "nested-pruning", "objective": "logit_diff"}, "signed"),
    ],
)
def test_another_metric_is_no_other_search_where_the_objective_does_not_follow_it(method: Any, rule: str) -> None:
    assert sharing(method, rule) == {**OF_METRIC, **FACTORIAL}


@pytest.mark.parametrize("method", ["eap-ig-inputs", "nested-pruning"])
def test_another_metric_is_another_search_where_the_objective_follows_it(method: str) -> None:
    assert sharing(method) == {}


def test_a_method_that_looks_at_clean_prompts_alone_searches_anew_for_other_prompts_alone() -> None:
    method = "information-flow-routes"
    own = ("ablation zero", "ablation mean", "corruption s2_io_flip")
    assert sharing(method) == {**dict.fromkeys((*own, *OF_METRIC, *FACTORIAL), "as it was found")}
    runs = runs_of(asked(controls=False), job(method), "signed")
    assert runs.searches == 1 + 3 + 5  # its own, new prompts, prompts drawn again
    assert runs.found == runs.settings - 1  # by another rule nothing is searched


def test_a_search_is_planned_once_however_many_settings_have_it() -> None:
    # as it was found; 2 ablations, 1 corruption, 3 sets of prompts, 5 draws, 2 sender orders; 3 controls
    runs = runs_of(asked(), job("acdc"), "decisions")
    assert runs.searches == 1 + 2 + 1 + 3 + 5 + 2 + 3
    assert runs.found == runs.settings == runs.searches + len(OF_METRIC) + len(FACTORIAL)


def test_a_circuit_that_is_only_measured_has_no_searches() -> None:
    assert {one.search_key for one in settings("eap", search=False)} == {None}


@pytest.mark.parametrize(
    ("factor", "behind", "rule", "why"),
    [
        ("corruption", job("eap", ablation="zero"), "signed", UNUSED),
        ("corruption", job("eap", task=PAIRS), "signed", "the prompts are the user's own and come with theirs"),
        ("corruption", job("eap", task="docstring"), "signed", "task docstring has one only"),
        ("rule", job("acdc"), "decisions", "the circuit was not cut from a ranking"),
        ("prompts", job("eap", task=PAIRS), "signed", "of the user's own prompts there are no others"),
        ("seed", job("eap"), "signed", "the search of eap has no seed"),
        ("seed", job("edge-pruning"), "edited", "the search is not made again"),
        ("order", job("eap"), "signed", "eap does not go from sender to sender"),
        ("order", job("acdc"), "core", "the search is not made again"),
    ],
)
def test_what_cannot_be_varied_is_told_with_the_reason(factor: str, behind: DiscoverSpec, rule: str, why: str) -> None:
    spec = asked(vary=[factor], factorial=False)
    assert not_varied(spec, behind, rule) == [NotVaried(factor, why)]
    assert [one.kind for one in settings_of(spec, behind, rule)] == ["own"]
    assert not_varied(asked(vary=["ablation"]), behind, rule) == [], "nobody asked for it"


@pytest.mark.parametrize("method", ["acdc", "edge-pruning"])
def test_what_is_varied_and_what_is_not_are_all_that_was_asked_for(method: str) -> None:
    rule = "decisions" if method == "acdc" else "greedy"
    varied = {one.factor for one in settings(method, rule)} - {""}
    left_out = {one.factor for one in not_varied(asked(), job(method), rule)}
    assert varied | left_out | {"groups"} == set(asked().vary)
    assert not varied & left_out
    assert left_out == ({"rule", "seed"} if method == "acdc" else {"order"})
