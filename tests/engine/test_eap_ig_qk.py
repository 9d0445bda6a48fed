"""EAP-IG with attention computed anew, against exact cutting where all else is linear, and against the gradient where
changes are small."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from masked_gradient import make_problem, relative
from tiny_transformers import MAKERS, random_pairs
from torch import Tensor

from acdc.discovery.eap import score_eap, score_eap_ig_inputs
from acdc.discovery.eap_ig_qk import score_eap_ig_qk
from acdc.discovery.exact import score_exact
from acdc.discovery.problem import Problem
from acdc.errors import TaskError
from acdc.evaluation.truth.cases import case_named, prompts_of
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.toy import ToyConfig, ToyTransformer
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.patching.forward import record
from acdc.progress import Quiet


def into_queries_and_keys(problem: Problem, scores: np.ndarray) -> Tensor:
    kinds = np.array([receiver.kind for receiver in problem.t.graph.receivers])
    return torch.from_numpy(scores[:, np.isin(kinds, ("q", "k"))])


def nearly_clean(problem: Problem, step: float) -> Problem:
    """The same with ablation values that lie only this far from clean towards their own."""
    prompts = []
    for p in problem.prompts:
        clean, _ = record(problem.t, p.batch.clean)
        away = clean.minus(p.ablation).mapped(lambda x: x * step)
        prompts.append(replace(p, ablation=clean.minus(away)))
    return replace(problem, prompts=prompts)


@pytest.mark.parametrize("causal", [True, False])
def test_where_all_but_attention_is_linear_edges_cost_what_cutting_them_costs(causal: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = ToyConfig(n_layers=1, attention_only=True, no_norm=True, bidirectional=not causal, vocab_size=50)
        model = ToyTransformer(config).double().eval()
        for parameter in model.parameters():
            parameter.data = 0.7 * torch.randn_like(parameter)
    t = wrap(model, split_position=True)
    batches = make_batches(t, random_pairs(5, (5, 7)), 512, 2**28)
    problem = Problem(t, prepare(t, batches, Resample()), METRICS["logit_diff"], 2**28)
    (found,), (cut,) = score_eap_ig_qk(problem, Quiet(), steps=1), score_exact(problem, Quiet())
    assert relative(torch.from_numpy(found.scores), torch.from_numpy(cut.scores)) < 1e-5
    assert relative(into_queries_and_keys(problem, found.scores), into_queries_and_keys(problem, cut.scores)) < 1e-5


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_small_changes_cost_what_the_gradient_says(name: str) -> None:
    problem = nearly_clean(make_problem(name, lengths=(5, 7)), 1e-3)
    (found,), (linear,) = score_eap_ig_qk(problem, Quiet(), steps=1), score_eap(problem, Quiet())
    assert relative(*(into_queries_and_keys(problem, one.scores) for one in (found, linear))) < 1e-2
    assert relative(torch.from_numpy(found.scores), torch.from_numpy(linear.scores)) < 1e-2


def test_all_other_edges_get_what_integrated_gradients_give_them() -> None:
    problem = make_problem("gemma3", metric="kl_divergence")
    (found,), (plain,) = (score(problem, Quiet(), steps=4) for score in (score_eap_ig_qk, score_eap_ig_inputs))
    kinds = np.array([receiver.kind for receiver in problem.t.graph.receivers])
    others = ~np.isin(kinds, ("q", "k"))
    assert np.array_equal(found.scores[:, others], plain.scores[:, others])
    assert relative(*(into_queries_and_keys(problem, one.scores) for one in (found, plain))) > 0.1


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_how_many_senders_fit_at_a_time_changes_nothing(name: str) -> None:
    problem = make_problem(name)
    whole, pieces = (
        score_eap_ig_qk(replace(problem, memory_bytes=memory), Quiet(), steps=2)[0].scores for memory in (2**30, 1)
    )
    assert relative(torch.from_numpy(pieces), torch.from_numpy(whole)) < 1e-5


def test_attention_as_sharp_as_an_index_hides_nothing() -> None:
    """The edges into queries and keys of the known AND gate, of which gradients see none."""
    case = case_named("gates/and")
    t = case.transformer()
    problem = Problem(t, prompts_of(case, t, "zero"), METRICS["logit_diff"], 2**28)
    (found,) = score_eap_ig_qk(problem, Quiet(), steps=10)
    true = case.truth(t.graph, "zero").true
    assert np.abs(found.scores[true]).min() > 0.1
    assert not found.scores[~true & t.graph.legal].any()


def test_an_objective_without_gradient_is_refused() -> None:
    with pytest.raises(TaskError, match="accuracy has no gradient"):
        score_eap_ig_qk(make_problem("toy", metric="accuracy"), Quiet(), steps=1)
