"""Attribution against its definition: the gradient of the metric with respect to the edge mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from masked_gradient import MEMORY, make_problem, mask_gradient, relative
from tiny_transformers import MAKERS, random_pairs, tiny

from acdc.discovery.eap import score_eap, score_eap_ig_activations, score_eap_ig_inputs
from acdc.discovery.exact import score_exact
from acdc.discovery.problem import Problem
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.patching.forward import Prefix
from acdc.progress import Quiet


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_eap_is_the_gradient_of_the_metric_with_respect_to_the_mask(name: str, ablation: str) -> None:
    problem = make_problem(name, ablation=ablation, lengths=(6, 7))
    (found,) = score_eap(problem, Quiet())
    expected = mask_gradient(problem, problem.full_mask())
    assert relative(torch.from_numpy(found.scores), expected) < 1e-5


@pytest.mark.parametrize("method", [score_eap, score_eap_ig_inputs, score_eap_ig_activations])
@pytest.mark.parametrize(
    ("name", "roles"),
    [
        *((name, ()) for name in ("gpt2", "llama", "mistral-sliding", "gemma2", "gpt-neox", "toy-bidirectional")),
        *((name, ("first",)) for name in ("gpt2", "gemma2")),  # a role within that beginning
    ],
)
def test_a_common_beginning_takes_no_part_in_attribution(name: str, roles: tuple[str, ...], method: Any) -> None:
    t = wrap(tiny(name)).split_by(roles) if roles else wrap(tiny(name))
    pairs = [replace(pair, clean=(*pair.corrupt[:3], *pair.clean[3:])) for pair in random_pairs(4, (6, 7))]
    prompts = prepare(t, make_batches(t, pairs, 512, MEMORY), Resample())
    assert {p.prefix.start for p in prompts} == ({3} if t.is_causal else {0})
    arguments = {} if method is score_eap else {"steps": 2}
    found, whole = (
        method(Problem(t, some, METRICS["logit_diff"], MEMORY, keep_examples=True), Quiet(), **arguments)[0]
        for some in (prompts, [replace(p, prefix=Prefix()) for p in prompts])
    )
    assert relative(torch.from_numpy(found.scores), torch.from_numpy(whole.scores)) < 1e-6
    assert relative(torch.from_numpy(found.per_example), torch.from_numpy(whole.per_example)) < 1e-6
    assert found.facts == pytest.approx(whole.facts)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "gemma3"])
def test_completeness_error_falls_as_one_over_the_steps(name: str) -> None:
    problem = make_problem(name)
    errors = [score_eap_ig_inputs(problem, Quiet(), steps=n)[0].facts["completeness_error"] for n in (64, 512)]
    assert 6 < errors[0] / errors[1] < 10  # a right-hand sum over k/n is of first order: 8 in the limit


def test_one_step_of_integrated_gradients_is_eap() -> None:
    problem = make_problem("llama")
    plain = torch.from_numpy(score_eap(problem, Quiet())[0].scores)
    for integrated in (score_eap_ig_inputs, score_eap_ig_activations):
        assert relative(torch.from_numpy(integrated(problem, Quiet(), steps=1)[0].scores), plain) < 1e-5


@pytest.mark.parametrize(
    ("metric", "at"), [("logit_diff", (1 / 3, 2 / 3, 1)), ("kl_divergence", (1 / 6, 3 / 6, 5 / 6))]
)
@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "gpt-neox"])
def test_integrated_activations_are_the_masks_gradient_with_one_sublayer_on_its_way(
    name: str, ablation: str, metric: str, at: tuple[float, ...]
) -> None:
    """A mask of alpha at all edges of some senders is their output so far on the way from its ablation value."""
    problem = make_problem(name, ablation=ablation, metric=metric, lengths=(5, 6))
    senders = [sender.name for sender in problem.t.graph.senders]
    sublayers = [name.split(".")[0] for name in senders]  # the heads of a layer are one, and so is every MLP
    expected = torch.zeros_like(problem.full_mask())
    for sublayer in set(sublayers):
        own = torch.tensor([one == sublayer for one in sublayers])
        for alpha in at:
            mask = problem.full_mask()
            mask[own] *= alpha
            expected[own] += mask_gradient(problem, mask)[own] / len(at)
    (found,) = score_eap_ig_activations(problem, Quiet(), steps=len(at))
    assert relative(torch.from_numpy(found.scores), expected) < 1e-5


def test_a_tile_of_one_token_gives_the_same_scores() -> None:
    problem = make_problem("gemma2")
    wide = score_eap(problem, Quiet())[0].scores
    narrow = score_eap(Problem(problem.t, problem.prompts, problem.objective, 1), Quiet())[0].scores
    assert relative(torch.from_numpy(narrow), torch.from_numpy(wide)) < 1e-5


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_exact_scores_are_the_metrics_of_masks_with_one_hole(name: str, ablation: str) -> None:
    problem = make_problem(name, ablation=ablation, lengths=(5, 6), metric="kl_divergence")
    (found,) = score_exact(problem, Quiet())
    full = problem.full_mask()
    reference = problem.measure(full[None]).mean()
    edges = list(problem.t.graph.edges())
    for edge in edges[:: max(1, len(edges) // 25)]:
        mask = full.clone()
        mask[edge.sender, edge.receiver] = 0
        expected = reference - problem.measure(mask[None]).mean()
        assert found.scores[edge.sender, edge.receiver] == pytest.approx(expected, abs=1e-6)


def test_exact_scores_of_some_receivers_are_those_of_all_and_the_rest_is_untested() -> None:
    problem = make_problem("gpt2", lengths=(5, 6))
    (whole,) = score_exact(problem, Quiet())
    (some,) = score_exact(problem, Quiet(), receivers=5, receiver_seed=1)
    columns = some.tested.any(0)
    assert columns.sum() == 5
    assert np.array_equal(some.tested, problem.t.graph.legal & columns)
    assert np.array_equal(some.scores[some.tested], whole.scores[some.tested])
    assert not some.scores[~some.tested].any()
    assert some.notes == (f"only edges into 5 of {problem.t.graph.n_receivers} receivers have a score",)
    (other,) = score_exact(problem, Quiet(), receivers=5, receiver_seed=2)
    assert not np.array_equal(other.tested, some.tested)
    (more,) = score_exact(problem, Quiet(), receivers=10_000)
    assert np.array_equal(more.scores, whole.scores)
    assert not more.notes
