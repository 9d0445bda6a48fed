"""Methods with another backward: relp and gim, against autograd through linearised models and through the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from linearised import Softmax, frozen, linearised, tempered, worth_of_nodes
from masked_gradient import make_problem, mask_gradient, relative
from tiny_transformers import MAKERS, tiny
from torch import Tensor

from acdc.discovery.eap import score_eap
from acdc.discovery.gim import score_gim
from acdc.discovery.problem import Found, Problem
from acdc.discovery.relp import score_relp
from acdc.errors import TaskError, UnsupportedModel
from acdc.graph import Graph
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patching.backward import Rules, with_rules
from acdc.patching.forward import Recorder, run_plain
from acdc.progress import Quiet


@dataclass(frozen=True)
class Kind:
    """A method in one of its forms, the rules that it should follow, and the linear model that stands for them."""

    score: Callable[[Problem], list[Found]]
    rules: Rules
    linear: dict[str, Any]
    softmax: Softmax | None


KINDS = {
    "relp-frozen": Kind(
        lambda problem: score_relp(problem, Quiet(), attention="frozen"),
        Rules("secant", "frozen"),
        {"activations": True, "divided": False},
        frozen,
    ),
    "relp-gradient": Kind(
        lambda problem: score_relp(problem, Quiet(), attention="gradient"),
        Rules("secant", "gradient"),
        {"activations": True, "divided": False},
        None,
    ),
    "gim": Kind(
        lambda problem: score_gim(problem, Quiet(), temperature=2.0),
        Rules("gradient", "tempered", 2.0),
        {"activations": False, "divided": True},
        tempered(2.0),
    ),
    "gim-at-3": Kind(
        lambda problem: score_gim(problem, Quiet(), temperature=3.0),
        Rules("gradient", "tempered", 3.0),
        {"activations": False, "divided": True},
        tempered(3.0),
    ),
}


def worth_in(graph: Graph, scores: np.ndarray) -> Tensor:
    """The sums over all edges that leave the embedding, and the heads and the MLP of each layer: [node]."""
    of_sender = scores.sum(1, dtype=np.float64)
    sums = [of_sender[: graph.n_inputs].sum()]
    for layer in range(graph.shape.n_layers):
        heads = graph.heads_of_layer(layer)
        sums.append(of_sender[heads].sum())
        if graph.shape.has_mlp:
            sums.append(of_sender[heads.stop])
    return torch.tensor(np.array(sums))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_nodes_are_worth_what_autograd_through_the_linearised_model_says(name: str, kind: str) -> None:
    problem, how = make_problem(name, lengths=(5, 7)), KINDS[kind]
    (found,) = how.score(problem)
    expected = worth_of_nodes(problem, linearised(tiny(name), **how.linear), how.softmax)
    assert relative(worth_in(problem.t.graph, found.scores), expected) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_edges_get_the_gradient_of_their_mask_under_the_same_rules(name: str, kind: str) -> None:
    problem, how = make_problem(name, lengths=(5, 7)), KINDS[kind]
    (found,) = how.score(problem)
    ruled = replace(problem, t=with_rules(problem.t, how.rules))
    assert relative(torch.from_numpy(found.scores), mask_gradient(ruled, problem.full_mask())) < 1e-5


def outputs_of(t: Transformer, tokens: Tensor) -> list[Tensor]:
    """All that a forward computes, with gradients on, as the rules stand for them only then."""
    recorder = Recorder()
    last = run_plain(t, t.embed(tokens).detach().requires_grad_(True), recorder)
    return [*recorder.z, *recorder.mlps, last, t.unembed(last)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_forward_stays_as_it_is_to_the_bit(name: str, kind: str, dtype: torch.dtype) -> None:
    t = wrap(tiny(name, dtype))
    tokens = torch.arange(12).view(2, 6)
    plain, ruled = outputs_of(t, tokens), outputs_of(with_rules(t, KINDS[kind].rules), tokens)
    assert all(torch.equal(a, b) for a, b in zip(plain, ruled, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_change_what_a_plain_gradient_says(kind: str) -> None:
    problem = make_problem("llama")
    (plain,), (ruled,) = score_eap(problem, Quiet()), KINDS[kind].score(problem)
    assert relative(torch.from_numpy(ruled.scores), torch.from_numpy(plain.scores)) > 0.1


# -- relevance is passed on, not made ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen3", "gemma3"])
def test_without_biases_what_flows_into_a_node_flows_out_of_it(name: str) -> None:
    """Under zero ablation the score of an edge is all the relevance that it carries."""
    problem = make_problem(name, ablation="zero")
    (found,) = KINDS["relp-frozen"].score(problem)
    graph, scores = problem.t.graph, found.scores.astype(np.float64)
    full = problem.measure(problem.full_mask()[None]).mean()
    assert scores[:, -1].sum() == pytest.approx(full, rel=1e-4)
    for layer in range(graph.shape.n_layers):
        heads, receivers = graph.heads_of_layer(layer), graph.receivers_of_layer(layer)
        values = scores[:, receivers.stop - 1 - graph.shape.n_kv_heads : receivers.stop - 1].sum()
        assert scores[heads].sum() == pytest.approx(values, rel=1e-4)
        assert scores[heads.stop].sum() == pytest.approx(scores[:, receivers.stop - 1].sum(), rel=1e-4)
    assert scores[: graph.n_inputs].sum() == pytest.approx(full, rel=1e-4)


def test_a_frozen_pattern_gives_queries_and_keys_nothing_and_values_all() -> None:
    problem = make_problem("llama")
    kinds = np.array([receiver.kind for receiver in problem.t.graph.receivers])
    (cut,), (left,) = KINDS["relp-frozen"].score(problem), KINDS["relp-gradient"].score(problem)
    for kind in ("q", "k"):
        assert not cut.scores[:, kinds == kind].any()
        assert left.scores[:, kinds == kind].any()
    assert cut.scores[:, kinds == "v"].any()


# -- self-repair -------------------------------------------------------------------------------------------------------


def test_gim_sees_a_key_whose_twin_would_take_its_place() -> None:
    """Two keys share all attention and hold the same value: moving weight from one to the other changes nothing."""
    t = wrap(tiny("toy"))
    layer = t.layers[0]
    shape = 1, t.n_heads, 3, t.d_head
    q, k, v = torch.zeros(shape, dtype=t.dtype), torch.zeros(shape, dtype=t.dtype), torch.zeros(shape, dtype=t.dtype)
    q[:, :, -1, 0] = 1
    k[:, :, 1:, 0] = 10 / layer.attention_scale
    v[:, :, 1:] = 1

    def slope(t: Transformer) -> float:
        key = k.clone().requires_grad_(True)
        z = t.attend_late(layer, q, key, v)
        return float(torch.autograd.grad(z[:, :, -1].sum(), key)[0][:, :, 1, 0].abs().max())

    assert slope(with_rules(t, KINDS["gim"].rules)) > 10 * slope(t)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "method"), [("relp-frozen", "relp"), ("gim", "gim")])
def test_kl_is_refused_as_it_has_no_slope_at_the_clean_run(kind: str, method: str) -> None:
    with pytest.raises(TaskError, match=f"{method} cannot use kl_divergence"):
        KINDS[kind].score(make_problem("llama", metric="kl_divergence"))


def test_an_mlp_that_is_made_of_other_parts_is_refused() -> None:
    model = tiny("llama")
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) + x
    with pytest.raises(UnsupportedModel, match="MLP of layer 1 of this llama model computes something else"):
        with_rules(wrap(model), Rules())
    mlp.forward = plain
    del mlp.gate_proj
    with pytest.raises(UnsupportedModel, match="MLP of layer 1 of this llama model has not the parts"):
        with_rules(wrap(model), Rules())
