"""Methods beside EAP and exact search, each against its definition worked out another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from masked_gradient import make_problem, mask_gradient, relative
from peak_memory import peak_bytes
from stopping import Keeps, StopsAt
from tiny_transformers import MAKERS, random_pairs, tiny
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.circuit import Scores
from acdc.discovery.eap import score_eap, score_eap_ig_inputs
from acdc.discovery.edge_pruning import BOUND, search_edge_pruning
from acdc.discovery.information_flow_routes import score_information_flow_routes
from acdc.discovery.mask_ig import score_mask_ig
from acdc.discovery.mask_training import drawn_batch
from acdc.discovery.nested_pruning import WARM_STEPS, search_nested_pruning
from acdc.discovery.node_ap import score_node_ap, score_node_ap_ig
from acdc.discovery.problem import Found, Problem
from acdc.errors import Cancelled, TaskError
from acdc.evaluation.truth.cases import case_named, prompts_of
from acdc.evaluation.truth.ranking import at_heads, average_precision
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.patching.forward import record
from acdc.patching.gradients import written
from acdc.patching.masked import run_masked
from acdc.patching.sizes import trained_streams
from acdc.progress import Quiet
from acdc.selection import rank

NESTED: dict[str, Any] = {"rate": 0.05, "kl_weight": 1.0, "examples": 8, "draw_seed": 0}
PRUNING: dict[str, Any] = {"rate": 0.1, "penalty_rate": 0.1, "warm_start": None, "mask_seed": 0}


# -- mask-ig -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_mask_ig_is_the_masks_gradient_averaged_from_empty_to_whole(name: str, ablation: str) -> None:
    problem = make_problem(name, ablation=ablation, lengths=(6, 7))
    (found,) = score_mask_ig(problem, Quiet(), steps=3)
    expected = sum(mask_gradient(problem, problem.full_mask() * k / 3) for k in (1, 2, 3)) / 3
    assert isinstance(expected, torch.Tensor)
    assert relative(torch.from_numpy(found.scores), expected) < 1e-5


def test_the_scores_of_mask_ig_add_up_to_all_that_there_is_to_explain() -> None:
    problem = make_problem("llama")
    (found,) = score_mask_ig(problem, Quiet(), steps=256)
    ends = torch.stack([problem.full_mask(), 0 * problem.full_mask()])
    full, empty = problem.measure(ends).mean(1)
    assert found.scores.sum() == pytest.approx(full - empty, rel=0.02)
    assert found.facts["completeness_error"] < 0.02


# -- nodes -------------------------------------------------------------------------------------------------------------


def node_scores(problem: Problem) -> dict[str, float]:
    """dm by scaling all that a node writes, at the clean run: the gradient of its whole row of the mask."""
    gradient = mask_gradient(problem, problem.full_mask())
    return {s.name: float(gradient[i].sum()) for i, s in enumerate(problem.t.graph.senders)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox"])
def test_node_ap_gives_an_edge_the_smaller_score_of_its_two_nodes(name: str) -> None:
    problem = make_problem(name)
    graph, by_node = problem.t.graph, node_scores(problem)
    (found,) = score_node_ap(problem, Quiet())
    for edge in list(graph.edges())[::7]:
        sender, readers = graph.senders[edge.sender].name, graph.nodes_read_by(edge.receiver)
        ends = [] if sender == "embed" else [by_node[sender]]
        if readers != ("logits",):
            ends.append(max((by_node[reader] for reader in readers), key=abs))
        if ends:
            assert found.scores[edge.sender, edge.receiver] == pytest.approx(min(ends, key=abs), rel=1e-4, abs=1e-9)


def test_what_goes_straight_from_the_input_to_the_logits_is_worth_what_it_is() -> None:
    problem = make_problem("llama")
    plain, nodes = score_eap(problem, Quiet())[0].scores, score_node_ap(problem, Quiet())[0].scores
    assert nodes[0, -1] == pytest.approx(plain[0, -1])


def test_integrated_node_scores_come_from_the_integrated_edge_scores() -> None:
    problem = make_problem("llama")
    edges, nodes = (method(problem, Quiet(), steps=4)[0].scores for method in (score_eap_ig_inputs, score_node_ap_ig))
    last_head = problem.t.graph.heads_of_layer(problem.t.n_layers - 1).start
    assert nodes[last_head, -1] == pytest.approx(edges[last_head].sum(), rel=1e-5)


# -- information flow routes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_information_flow_is_the_share_of_nearness_by_a_loop_over_tokens(name: str) -> None:
    problem = make_problem(name, lengths=(4, 5))
    graph = problem.t.graph
    expected, n = np.zeros(graph.legal.shape), 0
    for p in problem.prompts:
        outputs, _ = record(problem.t, p.batch.clean)
        parts = written(problem.t, outputs, slice(None)).detach().numpy()
        for token in range(parts.shape[1]):
            for r in range(graph.n_receivers):
                read = parts[: graph.n_senders_before[r], token]
                near = [max(0.0, abs(read.sum(0)).sum() - abs(read.sum(0) - part).sum()) for part in read]
                expected[: len(near), r] += np.array(near) / max(sum(near), 1e-30)
            n += 1
    (found,) = score_information_flow_routes(problem, Quiet())
    assert np.abs(found.scores - expected / n).max() < 1e-6


# -- edge pruning ------------------------------------------------------------------------------------------------------


def known(name: str = "hand-wired/induction") -> tuple[Problem, set[str]]:
    case = case_named(name)
    t = case.transformer()
    truth = case.truth(t.graph, "resample")
    problem = Problem(t, prompts_of(case, t, "resample"), METRICS["kl_divergence"], 2**30)
    return problem, set(t.graph.names_of(truth.true))


@pytest.mark.parametrize("name", ["hand-wired/induction", "tracr/more-opened"])
def test_edge_pruning_leaves_the_known_edges_open_and_no_others(name: str) -> None:
    problem, true = known(name)
    (found,) = search_edge_pruning(problem, Quiet(), edges=len(true), steps=1000, **PRUNING)
    best = rank(problem.t.graph, found.scores, found.tested, "signed").taken(len(true))
    assert set(problem.t.graph.names_of(best)) == true
    assert found.facts["edges_open"] == pytest.approx(len(true), abs=2)


@pytest.mark.parametrize("name", ["siit/indirect-object", "siit/induction"])
def test_edge_pruning_comes_near_to_the_size_asked_for_and_keeps_the_circuit_longest(name: str) -> None:
    problem, true = known(name)
    graph = problem.t.graph
    (found,) = search_edge_pruning(problem, Quiet(), edges=0.15, steps=1000, **PRUNING)
    assert found.facts["edges_open"] == pytest.approx(found.facts["edges_wanted"], rel=0.35)
    assert not found.notes
    scores, known_at_heads, legal = (  # what is known of these models is known of heads
        at_heads(graph, matrix) for matrix in (found.scores, graph.mask_of_edges(sorted(true)), graph.legal)
    )
    assert average_precision(scores[legal], known_at_heads[legal]) >= 0.95


def test_edge_pruning_says_where_it_did_not_come_near_the_size_asked_for() -> None:
    problem, _ = known()
    (found,) = search_edge_pruning(problem, Quiet(), edges=1, steps=2, **PRUNING)
    assert found.notes == (
        "training left 29 edges open where 1 were wanted: scores order edges around that size; more `steps`, or "
        "another `rate` or `penalty_rate`, may come nearer",
    )


def test_masks_stay_where_they_can_still_be_opened_and_shut() -> None:
    problem, _ = known("siit/induction")
    (found,) = search_edge_pruning(problem, Quiet(), edges=0.15, steps=300, **{**PRUNING, "rate": 2.0})
    most = np.log1p(np.exp(BOUND)) + 0.5
    assert 0 < found.scores[problem.t.graph.legal].min() < found.scores.max() <= most + 1e-6


def test_an_example_is_drawn_as_often_however_it_was_batched() -> None:
    problem = make_problem("gpt2", lengths=(6, 6, 9), n=6)
    sizes = [len(p.batch.examples) for p in problem.prompts]
    assert sorted(sizes) == [2, 4]
    draws = np.random.default_rng(0)
    drawn = [len(drawn_batch(problem, draws).batch.examples) for _ in range(3000)]
    assert np.mean(drawn) == pytest.approx((4 * 4 + 2 * 2) / 6, abs=0.05)


def test_a_warm_start_trains_the_largest_edges_of_mask_ig_alone() -> None:
    problem = make_problem("llama", metric="kl_divergence")
    graph = problem.t.graph
    (by_mask_ig,) = score_mask_ig(problem, Quiet(), steps=5)
    largest = rank(graph, by_mask_ig.scores, by_mask_ig.tested, "absolute").taken(graph.n_edges // 4)
    arguments = {**PRUNING, "warm_start": 0.25}
    (found,) = search_edge_pruning(problem, Quiet(), edges=0.1, steps=100, **arguments)
    assert ((found.scores > 0) == largest).all()


def test_edge_pruning_resumed_goes_on_as_if_never_stopped() -> None:
    problem, true = known()
    whole = search_edge_pruning(problem, Quiet(), edges=len(true), steps=50, **PRUNING)
    first = StopsAt(33)
    with pytest.raises(Cancelled):
        search_edge_pruning(problem, first, edges=len(true), steps=50, **PRUNING)
    assert first.saved is not None
    assert first.saved.step == 20
    resumed = search_edge_pruning(problem, Keeps(first.saved), edges=len(true), steps=50, **PRUNING)
    assert np.array_equal(resumed[0].scores, whole[0].scores)


def test_edge_pruning_cannot_leave_more_edges_than_there_are() -> None:
    problem, _ = known()
    with pytest.raises(TaskError, match="leave 1,000 edges open and has 29: lower `edges`"):
        search_edge_pruning(problem, Quiet(), edges=1000, steps=1, **PRUNING)
    with pytest.raises(TaskError, match="leave 10 edges open and has 6: lower `edges` or raise `warm_start`"):
        search_edge_pruning(problem, Quiet(), edges=10, steps=1, **{**PRUNING, "warm_start": 0.2})


@pytest.mark.parametrize("search", [search_edge_pruning, search_nested_pruning])
def test_masks_are_trained_in_float32_where_the_model_is_not(search: Callable[..., list[Found]]) -> None:
    t = wrap(tiny("gpt2", torch.bfloat16))
    prompts = prepare(t, make_batches(t, random_pairs(4), 512, 2**30), Resample())
    problem = Problem(t, prompts, METRICS["kl_divergence"], 2**30)
    arguments = {**PRUNING, "edges": 0.5} if search is search_edge_pruning else NESTED
    keeps = Keeps()
    (found,) = search(problem, keeps, steps=40, **arguments)
    assert keeps.saved is not None
    assert {array.dtype for array in keeps.saved.arrays.values()} == {np.dtype(np.float32)}
    assert len(np.unique(found.scores[t.graph.legal])) > t.graph.n_edges / 2


# -- nested pruning ----------------------------------------------------------------------------------------------------


def squared_error(problem: Problem, scores: Scores) -> float:
    """Of the objective over its span, averaged over examples and circuits of 1/20 of the edges, 2/20, ... 19/20."""
    graph = problem.t.graph
    ranking = rank(graph, scores, graph.legal, "absolute")
    masks = [ranking.taken(graph.n_edges * k // 20) for k in range(21)]
    values = problem.measure(torch.from_numpy(np.stack(masks).astype(np.float64)))
    return float(((values[1:-1] - values[-1]) ** 2).mean() / (values[-1] - values[0]).mean() ** 2)


@pytest.mark.parametrize("roles", [None, ("first",)])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_nested_pruning_brings_circuits_of_all_sizes_nearer_to_the_model_than_it_began(
    name: str, roles: tuple[str, ...] | None
) -> None:
    problem = make_problem(name, lengths=(5, 6), n=8, roles=roles)
    (begun,) = score_eap_ig_inputs(problem, Quiet(), steps=WARM_STEPS)
    (found,) = search_nested_pruning(problem, Quiet(), steps=300, **{**NESTED, "kl_weight": 0.0})
    assert squared_error(problem, found.scores) < 0.7 * squared_error(problem, begun.scores)


@pytest.mark.parametrize("name", ["hand-wired/induction", "gates/or", "gates/and"])
def test_nested_pruning_puts_the_known_edges_first(name: str) -> None:
    problem, true = known(name)
    problem = replace(problem, objective=METRICS["logit_diff"])
    (found,) = search_nested_pruning(problem, Quiet(), steps=300, **NESTED)
    first = rank(problem.t.graph, found.scores, found.tested, "signed").taken(len(true))
    assert set(problem.t.graph.names_of(first)) == true


def test_nested_pruning_begins_with_the_root_mean_square_of_attribution_over_examples() -> None:
    problem = make_problem("llama", n=6)
    graph = problem.t.graph
    (attributed,) = score_eap_ig_inputs(replace(problem, keep_examples=True), Quiet(), steps=WARM_STEPS)
    of_examples = np.stack([graph.matrix_of(row) for row in attributed.per_example])
    begun_with = rank(graph, np.sqrt((of_examples**2).mean(0)), graph.legal, "absolute")
    (found,) = search_nested_pruning(problem, Quiet(), steps=1, **{**NESTED, "rate": 1e-6})
    assert (rank(graph, found.scores, graph.legal, "absolute").order == begun_with.order).all()
    by_mean = rank(graph, attributed.scores, graph.legal, "absolute")
    assert (by_mean.order != begun_with.order).any()


def test_a_score_of_nested_pruning_is_the_logarithm_of_the_edges_place() -> None:
    problem = make_problem("gpt2")
    n = problem.t.graph.n_edges
    (found,) = search_nested_pruning(problem, Quiet(), steps=1, **NESTED)
    places = n / np.exp(np.sort(found.scores[found.tested])[::-1])
    assert np.allclose(places, np.arange(1, n + 1), rtol=1e-4)


def test_nested_pruning_ranks_as_it_trained_with_edges_moved_below_zero_last() -> None:
    problem, kept = make_problem("gpt2"), Keeps()
    (found,) = search_nested_pruning(problem, kept, steps=20, **{**NESTED, "rate": 0.2})
    assert kept.saved is not None
    assert kept.saved.step == 20
    numbers = kept.saved.arrays["numbers"]
    assert (numbers < 0).sum() > 5
    assert np.array_equal(np.argsort(-numbers), np.argsort(-problem.t.graph.in_order(found.scores)))


def test_nested_pruning_resumed_goes_on_as_if_never_stopped() -> None:
    problem = make_problem("gpt2", lengths=(5, 6))
    arguments = {**NESTED, "examples": 1}
    whole = search_nested_pruning(problem, Quiet(), steps=50, **arguments)
    first = StopsAt(33)
    with pytest.raises(Cancelled):
        search_nested_pruning(problem, first, steps=50, **arguments)
    assert first.saved is not None
    assert first.saved.step == 20
    resumed = search_nested_pruning(problem, Keeps(first.saved), steps=50, **arguments)
    assert np.array_equal(resumed[0].scores, whole[0].scores)
    other = search_nested_pruning(problem, Quiet(), steps=50, **{**arguments, "draw_seed": 1})
    assert not np.array_equal(other[0].scores, whole[0].scores)


def test_a_plan_knows_the_memory_that_the_gradient_of_masks_takes() -> None:
    width, length, n = 64, 16, 8
    ids = {"bos_token_id": None, "eos_token_id": None}
    config = GPT2Config(n_layer=12, n_head=8, n_embd=width, vocab_size=50, n_positions=length, **ids)
    t = wrap(GPT2LMHeadModel(config).eval())
    (p,) = prepare(t, make_batches(t, random_pairs(n, (length,), vocab=50), 512, 2**30), Resample())
    mask = torch.ones(1, *t.graph.legal.shape, requires_grad=True)

    def one_step() -> None:
        last = run_masked(t, p.inputs, p.ablation, mask, p.prefix, p.roles)
        t.unembed(p.read(last[0])).sum().backward()

    stream = n * length * width * 4
    assert (
        1 <= peak_bytes(one_step) / (trained_streams(t.graph) * stream) <= 1.4
    )  # what a head does within comes on top


def test_where_model_and_empty_circuit_do_the_same_nested_pruning_says_so() -> None:
    problem = make_problem("gpt2")
    same = [replace(p, ablation=record(problem.t, p.batch.clean)[0]) for p in problem.prompts]
    with pytest.raises(TaskError, match="nothing between them to be faithful to"):
        search_nested_pruning(replace(problem, prompts=same), Quiet(), steps=1, **NESTED)
