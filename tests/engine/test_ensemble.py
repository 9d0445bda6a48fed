"""The ensemble: mean ranks by hand and by a loop, and edges whose sign the prompts decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from masked_gradient import make_problem
from stopping import Keeps
from test_documented_checkpoints import words_tokenizer
from tiny_transformers import tiny

from acdc.circuit import Choices, Scores
from acdc.discovery import METHODS
from acdc.discovery.eap import score_eap, score_eap_ig_inputs
from acdc.discovery.ensemble import RESAMPLES, Member, score_ensemble, share_of_sign, signed_ranks
from acdc.discovery.exact import score_exact
from acdc.discovery.mask_ig import score_mask_ig
from acdc.discovery.problem import Found, Problem
from acdc.errors import SpecError, TaskError
from acdc.models.loading import describe_loaded
from acdc.pipeline import run_on
from acdc.progress import Progress, Quiet
from acdc.spec import DiscoverSpec, Ensemble, parse_job

PLAIN: dict[str, Any] = {"ranks": "signed", "consistency": None, "resample_seed": 0}
MEMBERS = [
    Member("eap", score_eap, {}),
    Member("mask-ig", score_mask_ig, {"steps": 3}),
    Member("exact", score_exact, {}),
]


def scores_of(problem: Problem, member: Member) -> Scores:
    return problem.t.graph.in_order(member.score(problem, Quiet(), **member.arguments)[0].scores)


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_ranks_go_by_size_and_keep_the_sign() -> None:
    found = signed_ranks(np.array([0.5, -2.0, 0.0, 0.5, 1.0]))
    assert found.tolist() == pytest.approx([2.5 / 5, -1.0, 0.0, 2.5 / 5, 4 / 5])


@pytest.mark.parametrize("ranks", ["signed", "absolute"])
def test_an_edge_gets_its_mean_rank_over_the_methods_by_a_loop(ranks: str) -> None:
    problem = make_problem("llama")
    each = [scores_of(problem, member) for member in MEMBERS]
    expected = []
    for edge in range(problem.t.graph.n_edges):
        own = []
        for scores in each:
            size = abs(scores[edge])
            below, equal = (np.abs(scores) < size).sum(), (np.abs(scores) == size).sum()
            own.append(np.sign(scores[edge]) * (below + (equal + 1) / 2) / len(scores))
        expected.append(np.mean(own if ranks == "signed" else np.abs(own)))
    (found,) = score_ensemble(problem, Quiet(), methods=MEMBERS, **{**PLAIN, "ranks": ranks})
    assert problem.t.graph.in_order(found.scores) == pytest.approx(np.array(expected), abs=1e-6)
    assert found.is_ranking


def turned(problem: Problem, progress: Progress) -> list[Found]:
    """EAP with the opposite sign."""
    (found,) = score_eap(problem, progress)
    return [replace(found, scores=-found.scores)]


def test_methods_that_disagree_on_every_sign_cancel_out_in_signed_ranks_alone() -> None:
    problem, methods = make_problem("llama"), [Member("eap", score_eap, {}), Member("turned", turned, {})]
    (signed,) = score_ensemble(problem, Quiet(), methods=methods, **PLAIN)
    (absolute,) = score_ensemble(problem, Quiet(), methods=methods, **{**PLAIN, "ranks": "absolute"})
    assert not signed.scores.any()
    plain = np.abs(scores_of(problem, methods[0]))
    assert (np.argsort(problem.t.graph.in_order(absolute.scores)) == np.argsort(plain)).all()


def test_what_the_methods_cost_and_say_is_told_of_each() -> None:
    methods = [Member("eap-ig-inputs", score_eap_ig_inputs, {"steps": 3}), *MEMBERS]
    problem = make_problem("llama")
    (found,) = score_ensemble(problem, Quiet(), methods=methods, **PLAIN)
    assert found.passes == {"forward": 6, "forward_backward": 7, "half_forward": problem.t.graph.n_edges}
    assert set(found.facts) == {"completeness_error (1)", "completeness_error (3)"}


def test_a_method_among_several_takes_no_checkpoint_for_its_own() -> None:
    problem, progress = make_problem("toy"), Keeps()
    (first,) = score_ensemble(problem, progress, methods=MEMBERS, **PLAIN)
    assert progress.saved is None
    score_exact(problem, progress)
    (again,) = score_ensemble(problem, progress, methods=MEMBERS, **PLAIN)
    assert np.array_equal(first.scores, again.scores)


# -- consistency -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_groups", [3, 12])
def test_the_share_of_a_sign_is_counted_over_redrawn_prompts(n_groups: int) -> None:
    """With twelve groups they are drawn whole; three are too few, and prompts are drawn one by one."""
    rng = np.random.default_rng(1)
    groups = [f"group {i % n_groups}" for i in range(24)]
    of_group = rng.normal(size=(n_groups, 40))[[i % n_groups for i in range(24)]]
    per_example = (of_group + 0.1 * rng.normal(size=(24, 40)) + np.linspace(-1, 1, 40)).astype(np.float32)
    scores = per_example.mean(0, dtype=np.float64)
    counted = np.zeros(40)
    for _ in range(2000):
        if n_groups < 10:
            rows = rng.integers(24, size=24)
        else:
            drawn = rng.integers(n_groups, size=n_groups)
            rows = np.concatenate([np.flatnonzero(np.arange(24) % n_groups == group) for group in drawn])
        counted += np.sign(per_example[rows].mean(0)) == np.sign(scores)
    found = share_of_sign(per_example, scores, groups, seed=0)
    assert np.abs(found - counted / 2000).max() < 5 * (0.25 / RESAMPLES + 0.25 / 2000) ** 0.5


def test_only_edges_of_consistent_sign_keep_a_score() -> None:
    problem = make_problem("llama", n=12)
    (alone,) = score_eap(replace(problem, keep_examples=True), Quiet())
    assert alone.per_example is not None
    scores = problem.t.graph.in_order(alone.scores).astype(np.float64)
    share = share_of_sign(alone.per_example, scores, [str(i) for i in range(12)], seed=3)
    strict: dict[str, Any] = {"ranks": "signed", "consistency": 0.9, "resample_seed": 3}
    (found,) = score_ensemble(problem, Quiet(), methods=MEMBERS[:1], **strict)
    kept = problem.t.graph.in_order(found.scores) != 0
    assert (kept == (share >= 0.9)).all()
    assert 0 < kept.sum() < len(kept)
    assert found.facts["consistent_edges (1)"] == kept.sum()


def test_prompts_of_one_group_are_drawn_together() -> None:
    problem = replace(make_problem("llama", n=24), groups=tuple(f"group {i // 2}" for i in range(24)))
    by_group, by_prompt = (
        score_ensemble(replace(problem, groups=groups), Quiet(), methods=MEMBERS[:1], **{**PLAIN, "consistency": 0.9})
        for groups in (problem.groups, ())
    )
    assert by_group[0].facts != by_prompt[0].facts


def test_without_scores_of_every_prompt_consistency_is_refused_and_it_is_said_why() -> None:
    problem = make_problem("llama")
    with pytest.raises(TaskError, match="`consistency` needs exact's scores of every prompt: the method gives no"):
        score_ensemble(problem, Quiet(), methods=MEMBERS[2:], **{**PLAIN, "consistency": 0.9})
    few = replace(problem, memory_bytes=2**10)
    with pytest.raises(TaskError, match="`consistency` needs eap's scores of every prompt: the scores of"):
        score_ensemble(few, Quiet(), methods=MEMBERS[:1], **{**PLAIN, "consistency": 0.9})


# -- as a spec ---------------------------------------------------------------------------------------------------------


def ensemble(**fields: Any) -> Ensemble:
    spec = parse_job({"method": {"name": "ensemble", **fields}})
    assert isinstance(spec, DiscoverSpec)
    assert isinstance(spec.method, Ensemble)
    return spec.method


def test_methods_may_be_words_or_have_parameters_of_their_own() -> None:
    method = ensemble(methods=["eap", {"name": "mask-ig", "steps": 3}])
    assert [part.model_dump(exclude={"objective"}) for part in method.methods] == [
        {"name": "eap"},
        {"name": "mask-ig", "steps": 3},
    ]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"methods": [{"name": "eap", "objective": "prob_diff"}]}, "share its `objective`"),
        ({"methods": ["eap", "exact"], "consistency": 0.9}, "which exact does not give"),
        ({"objective": "kl_divergence"}, "'gim' cannot use kl_divergence"),
        ({"objective": "accuracy"}, "'eap-ig-inputs' needs a gradient"),
        ({"methods": ["acdc"]}, "unknown method 'acdc'"),
        ({"methods": ["ensemble"]}, "'ensemble'"),
        ({"methods": []}, "at least 1"),
        ({"consistency": 0.5}, "greater than 0.5"),
    ],
)
def test_what_cannot_be_ranked_together_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError) as caught:
        ensemble(**fields)
    assert any(why in fault.message for fault in caught.value.faults), caught.value.faults


def test_a_job_tells_the_search_which_prompts_are_of_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Problem] = []

    def watched(problem: Problem, progress: Progress) -> list[Found]:
        seen.append(problem)
        return score_eap(problem, progress)

    monkeypatch.setitem(METHODS, "eap", watched)
    pairs = [
        {"clean": f"{w} b {o}", "corrupt": f"{w} c {o}", "answers": " d", "wrong": " e", "group": w}
        for w in "abcdef"
        for o in "ab"
    ]
    spec = parse_job(
        {
            "task": {"name": "custom", "pairs": pairs, "prompts": 8, "held_out": 4},
            "method": {"name": "ensemble", "methods": ["eap"], "consistency": 0.9},
            "evaluation": {"grid": [0.5], "random_circuits": 1, "band_circuits": 0},
        }
    )
    (result,) = run_on(describe_loaded(tiny("toy", torch.float32), words_tokenizer()), spec, Quiet())
    (problem,) = seen
    assert result.circuit is not None
    assert len(problem.groups) == problem.n_examples == 8
    assert set(problem.groups) == set(result.circuit.provenance.task.groups_search)
    assert result.circuit.provenance.choices.parameters["methods"] == [{"name": "eap", "objective": None}]
    problem = problem.of([5, 2])
    assert problem.groups == (seen[0].groups[5], seen[0].groups[2])


def test_a_circuit_says_in_words_which_methods_were_ranked_together() -> None:
    parameters = ensemble(methods=["eap", {"name": "mask-ig", "steps": 3}]).model_dump(exclude={"name"})
    said = Choices("logit_diff", "logit_diff", "resample", "ensemble", parameters).said
    assert said["methods"] == ["eap", "mask-ig (steps 3)"]
