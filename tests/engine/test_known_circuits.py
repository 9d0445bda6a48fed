"""Methods on models whose circuit is known, and identities between methods."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from stopping import Keeps
from tiny_transformers import MAKERS, random_pairs, tiny

from acdc.discovery.acdc import search_acdc
from acdc.discovery.eap import score_eap
from acdc.discovery.exact import score_exact
from acdc.discovery.problem import Problem, add_scores
from acdc.discovery.walk import receiver_order
from acdc.errors import Cancelled
from acdc.evaluation.truth.hand_wired import INDUCTION_RESAMPLE, INDUCTION_ZERO, induction_model, induction_pairs
from acdc.graph import Edge, Graph, GraphShape
from acdc.metrics import METRICS, Metric
from acdc.models.architectures import wrap
from acdc.models.toy import ToyConfig, ToyTransformer
from acdc.patching.ablation import Resample, Zero
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.progress import Checkpoint, Quiet

MEMORY = 2**30


def problem_of(model: object, pairs: list, ablation: object = None, metric: str = "logit_diff") -> Problem:  # type: ignore[type-arg]
    t = wrap(model)  # type: ignore[arg-type]
    prompts = prepare(t, make_batches(t, pairs, 512, MEMORY), ablation or Resample())  # type: ignore[arg-type]
    return Problem(t, prompts, METRICS[metric], MEMORY)


def names(graph: Graph, mask: np.ndarray) -> set[str]:  # type: ignore[type-arg]
    return {graph.edge_name(Edge(int(s), int(r))) for s, r in zip(*np.nonzero(mask), strict=True)}


@pytest.mark.parametrize(("ablation", "edges"), [(Resample(), INDUCTION_RESAMPLE), (Zero(), INDUCTION_ZERO)])
def test_exact_and_acdc_find_the_hand_wired_induction_circuit(ablation: object, edges: tuple[str, ...]) -> None:
    circuit = set(edges)
    problem = problem_of(induction_model(), induction_pairs(), ablation)
    graph = problem.t.graph
    assert names(graph, np.abs(score_exact(problem, Quiet())[0].scores) > 1e-9) == circuit
    for metric in ("logit_diff", "kl_divergence"):
        problem = problem_of(induction_model(), induction_pairs(), ablation, metric)
        (found,) = search_acdc(problem, Quiet(), thresholds=[1e-6], rule="signed")
        assert found.kept is not None
        assert names(graph, found.kept) == circuit


def test_where_the_model_is_linear_eap_equals_exact_edge_by_edge() -> None:
    """Queries and keys are 0, so attention is uniform and all else is linear: no MLPs, no norms."""
    torch.manual_seed(0)
    model = ToyTransformer(ToyConfig(vocab_size=50, n_layers=3, attention_only=True, no_norm=True)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for layer in model.layers:
            for part in (layer.attention.q, layer.attention.k):
                part.weight.zero_()
                part.bias.zero_()
    problem = problem_of(model, random_pairs(3, lengths=(5, 6)))
    eap, exact = score_eap(problem, Quiet())[0].scores, score_exact(problem, Quiet())[0].scores
    assert np.abs(exact).max() > 1e-3
    assert np.allclose(eap, exact, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("name", "rule"), [*((name, "signed") for name in sorted(MAKERS)), ("llama", "absolute")])
def test_acdc_keeps_all_edges_at_minus_infinity_and_none_at_infinity(name: str, rule: str) -> None:
    problem = problem_of(tiny(name), random_pairs(2))
    for threshold, kept in ((-math.inf, problem.t.graph.legal), (math.inf, np.zeros_like(problem.t.graph.legal))):
        (found,) = search_acdc(problem, Quiet(), thresholds=[threshold], rule=rule)
        assert np.array_equal(found.kept, kept)
        expected = problem.measure(torch.from_numpy(kept[None].astype(np.float64))).mean()
        assert found.facts["objective"] == pytest.approx(float(expected), abs=1e-10)


def test_results_of_thresholds_that_hardly_differ_have_keys_of_their_own() -> None:
    problem = problem_of(tiny("llama"), random_pairs(2))
    found = search_acdc(problem, Quiet(), thresholds=[100.1, 100.10001], rule="signed")
    assert [one.key for one in found] == ["threshold=100.10001", "threshold=100.1", "thresholds"]


def test_acdc_decides_as_a_loop_without_any_shortcut_does() -> None:
    problem = problem_of(tiny("gpt-neox"), random_pairs(2))
    graph, threshold = problem.t.graph, 0.02
    kept = graph.legal.copy()

    def metric(mask: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(problem.measure(torch.from_numpy(mask[None].astype(np.float64))).mean())

    standing = metric(kept)
    for r in receiver_order(graph):
        for s in reversed(range(int(graph.n_senders_before[r]))):
            kept[s, r] = False
            without = metric(kept)
            if standing - without < threshold:
                standing = without
            else:
                kept[s, r] = True
    (found,) = search_acdc(problem, Quiet(), thresholds=[threshold], rule="signed")
    assert found.kept is not None
    assert 0 < kept.sum() < graph.n_edges
    assert np.array_equal(found.kept, kept)


def test_the_walk_goes_from_the_output_to_the_input() -> None:
    graph = Graph(GraphShape(n_layers=2, n_heads=2, n_kv_heads=1))
    walk = [graph.receivers[r].name for r in receiver_order(graph)]
    one = ["mlp1", "1.1.q", "1.0.q", "1.0.k", "1.0.v"]
    assert walk == ["logits", *one, *(name.replace("1", "0", 1) for name in one)]


class StopsOnceDone(Keeps):
    """Stops a search when so many of its edges are decided: how many steps that takes is a matter of time."""

    def __init__(self, edges: int) -> None:
        super().__init__()
        self.edges = edges

    def step(self, done: int, note: str = "") -> None:
        if done >= self.edges:
            raise Cancelled("stopped by the test")


@pytest.mark.usefixtures("timeless")  # else batches have another shape, and costs other last bits
@pytest.mark.parametrize("edges", [0, 20, 47, 60, 120])
def test_a_search_resumed_from_its_checkpoint_ends_as_if_never_stopped(edges: int) -> None:
    problem = problem_of(tiny("toy"), random_pairs(2))
    arguments = {"thresholds": [0.05, 0.01, 0.001], "rule": "absolute"}
    whole = search_acdc(problem, Quiet(), **arguments)
    first = StopsOnceDone(edges)
    with pytest.raises(Cancelled):
        search_acdc(problem, first, **arguments)
    resumed = search_acdc(problem, Keeps(first.saved), **arguments)
    assert [found.key for found in resumed] == [found.key for found in whole]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert np.array_equal(ours.scores, theirs.scores)
        assert (ours.kept is None) == (theirs.kept is None)
        assert ours.kept is None or np.array_equal(ours.kept, theirs.kept)


def test_exact_resumes_from_its_checkpoint() -> None:
    problem = problem_of(tiny("toy"), random_pairs(2))
    saved = Checkpoint(64, arrays={"scores": score_exact(problem, Quiet())[0].scores * 0 + 7})
    scores = score_exact(problem, Keeps(saved))[0].scores
    redone = [scores[edge.sender, edge.receiver] for edge in list(problem.t.graph.edges())[:64]]
    assert redone == [7.0] * len(redone)


def test_over_several_thresholds_an_edges_score_is_the_largest_it_survives() -> None:
    problem = problem_of(tiny("toy"), random_pairs(2))
    thresholds = [0.1, 0.03, 0.01]
    *circuits, ranking = search_acdc(problem, Quiet(), thresholds=thresholds, rule="absolute")
    expected = np.zeros_like(ranking.scores)
    for threshold, found in zip(sorted(thresholds), reversed(circuits), strict=True):
        assert found.kept is not None
        expected[found.kept] = threshold
    assert np.allclose(ranking.scores, expected)


@pytest.mark.parametrize("method", [score_eap, score_exact])
def test_one_thread_and_two_give_the_same_scores(method: object) -> None:
    problem = problem_of(tiny("llama", torch.float32), random_pairs(6, lengths=(6, 9)))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(method(problem, Quiet())[0].scores)  # type: ignore[operator]
    finally:
        torch.set_num_threads(before)
    largest = np.abs(results[0]).max()
    assert all(np.abs(scores - results[0]).max() <= 1e-5 * largest for scores in results[1:])


def test_scores_of_mixed_lengths_are_the_mean_of_single_prompts() -> None:
    model, pairs = tiny("qwen2"), random_pairs(6, lengths=(4, 6, 9))
    together = score_eap(problem_of(model, pairs), Quiet())[0].scores
    alone = np.mean([score_eap(problem_of(model, [pair]), Quiet())[0].scores for pair in pairs], axis=0)
    assert np.abs(together - alone).max() < 1e-6 * np.abs(alone).max()


def test_scores_of_several_objectives_are_those_of_their_weighted_sum() -> None:
    """Attribution is linear in its objective: the sum of shares is attribution of the weighted metric."""
    parts = []
    for metric in ("logit_diff", "answer_logprob"):
        parts += score_eap(problem_of(tiny("llama"), random_pairs(4), metric=metric), Quiet())
    sizes = [float(np.abs(part.scores).sum()) for part in parts]

    def weighted(logits: torch.Tensor, batch: object, clean: torch.Tensor | None) -> torch.Tensor:
        names = ("logit_diff", "answer_logprob")
        values = [METRICS[name].function(logits, batch, clean) / size for name, size in zip(names, sizes, strict=True)]  # type: ignore[arg-type]
        return values[0] + values[1]

    problem = problem_of(tiny("llama"), random_pairs(4))
    both = Metric("weighted", weighted, needs_wrong=True, needs_clean=False, has_gradient=True)  # type: ignore[arg-type]
    (expected,) = score_eap(Problem(problem.t, problem.prompts, both, MEMORY), Quiet())
    total = add_scores(parts)
    assert np.abs(total.scores - expected.scores).max() < 1e-6 * np.abs(expected.scores).max()
    assert total.passes == {"forward": 4, "forward_backward": 2}
