"""Bootstrap stability, against planted scores whose inclusion probabilities are known and against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analytic_measure import MEDIUM, SHAPES, SMALL, TINY, Additive, random_scores, split_of
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.circuit import Selected
from acdc.errors import Cancelled
from acdc.evaluation.bootstrap import units_of
from acdc.evaluation.judging import Plan, judge
from acdc.evaluation.stability import RESAMPLES, stability_of
from acdc.graph import Graph
from acdc.progress import Quiet
from acdc.report import Stability
from acdc.selection import RULES, Kept, rank


def selected(graph, per_example, n, rule="signed"):
    return rank(graph, graph.matrix_of(per_example.mean(0)), graph.legal, rule).select(n)


def measured(graph, per_example, kept, groups=None, seed=0):
    groups = [str(i) for i in range(len(per_example))] if groups is None else groups
    return stability_of(graph, per_example.astype(np.float32), graph.legal, groups, kept, seed, Quiet())


def noise(graph, n_examples=40, seed=0):
    return np.random.default_rng(seed).standard_normal((n_examples, graph.n_edges)).astype(np.float32)


def fixed(graph, **others):
    """Direct edges embed -> mlp -> logits with scores that always win, others as told; all that is left loses."""
    scores = np.full(graph.n_edges, -1.0)
    place = {graph.edge_name(edge): i for i, edge in enumerate(graph.edges())}
    for name, score in {"embed->mlp0": 10, "mlp0->logits": 9, **others}.items():
        scores[place[name]] = score
    return scores, place


@given(SHAPES)
def test_edges_in_a_row_go_back_to_their_cells(shape):
    graph = Graph(shape)
    numbers = np.arange(1, graph.n_edges + 1)
    matrix = graph.matrix_of(numbers)
    assert [matrix[edge.sender, edge.receiver] for edge in graph.edges()] == numbers.tolist()
    assert (graph.in_order(matrix) == numbers).all()
    assert (matrix != 0).sum() == graph.n_edges


@pytest.mark.parametrize("rule", RULES)
def test_identical_examples_always_give_the_same_circuit(rule):
    per_example = np.repeat(noise(MEDIUM, 1), 40, axis=0)
    kept = selected(MEDIUM, per_example, 700, rule)
    found, inclusion = measured(MEDIUM, per_example, kept)
    assert (found.jaccard, found.jaccard_with_kept, found.verdict) == (1.0, 1.0, "stable")
    assert (inclusion == kept.mask).all()
    assert (found.kept_in_half, found.others_in_half) == (kept.selected.connected, 0)


def test_an_edge_that_only_some_groups_have_is_included_as_often_as_they_outweigh_its_rival():
    """16 groups; 10 favour one edge, 6 another. The first wins where it is drawn more often: Binomial(16, 10/16)."""
    one, other = "embed->logits", "0.0->logits"
    groups = [f"g{i % 16}" for i in range(64)]
    per_example = np.stack(
        [fixed(SMALL, **{"embed->0.0.v": 8, one: i % 16 < 10, other: i % 16 >= 10})[0] for i in range(64)]
    )
    kept = selected(SMALL, per_example, 4)
    assert kept.mask[0, -1], "10 of 16 groups favour it"
    found, inclusion = measured(SMALL, per_example, kept, groups)
    drawn = np.random.default_rng(1).binomial(16, 10 / 16, 100_000)
    expected = (drawn > 8).mean() + (drawn == 8).mean()  # a tie goes to embed, which comes first
    edge, rival = SMALL.edge(one), SMALL.edge(other)
    spread = np.sqrt(expected * (1 - expected) / RESAMPLES)
    assert inclusion[edge.sender, edge.receiver] == pytest.approx(expected, abs=4 * spread)
    assert inclusion[rival.sender, rival.receiver] == pytest.approx(1 - expected, abs=4 * spread)
    always = SMALL.edge("mlp0->logits")
    assert inclusion[always.sender, always.receiver] == 1
    assert (found.unit, found.n_units, found.n_examples) == ("group", 16, 64)


def test_two_halves_that_disagree_about_everything_are_unstable():
    """26 prompts want MLP 0's path, 25 MLP 1's: whichever is drawn more often, of 51, is the whole circuit."""
    first, place = fixed(SMALL, **{"embed->mlp0": 9})
    second = np.full(SMALL.n_edges, -1.0)
    second[place["embed->mlp1"]], second[place["mlp1->logits"]] = 9, 9
    per_example = np.stack([first, second] * 25 + [first])
    kept = selected(SMALL, per_example, 2)
    found, inclusion = measured(SMALL, per_example, kept, ["same"] * 51)
    p = inclusion[0, SMALL.receiver_index("mlp0")]
    assert found.verdict == "unstable"
    assert found.unit == "example"
    assert 0.3 < p < 0.7
    n = p * RESAMPLES
    same = (n * (n - 1) + (RESAMPLES - n) * (RESAMPLES - n - 1)) / (RESAMPLES * (RESAMPLES - 1))
    assert found.jaccard == pytest.approx(same)
    assert found.jaccard_with_kept == pytest.approx(p)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(RULES), st.integers(1, 9))
def test_the_figures_are_those_of_brute_force(seed, rule, n):
    per_example = np.stack([TINY.in_order(random_scores(TINY, seed + i)) for i in range(33)])
    kept = selected(TINY, per_example, n, rule)
    if not kept.mask.any():
        return
    found, inclusion = measured(TINY, per_example, kept, ["a"] * 33, seed)
    circuits = []
    for counts in units_of(["a"] * 33).draw(RESAMPLES, seed):
        drawn = np.repeat(per_example, counts, axis=0)
        circuits.append(selected(TINY, drawn.astype(np.float64), n, rule).mask)
    assert inclusion == pytest.approx(np.mean(circuits, axis=0), abs=0.02)  # ties may fall either way by rounding
    jaccard = [overlap(a, b) for i, a in enumerate(circuits) for b in circuits[:i]]
    assert found.jaccard == pytest.approx(np.mean(jaccard), abs=0.02)
    assert found.jaccard_with_kept == pytest.approx(np.mean([overlap(kept.mask, c) for c in circuits]), abs=0.02)
    assert found.kept_in_half == (inclusion[kept.mask] > 0.5).sum()
    assert found.others_in_half == (inclusion[~kept.mask] > 0.5).sum()


def overlap(a, b):
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 0.0


def test_more_examples_of_the_same_kind_make_a_circuit_more_stable():
    signal = 0.5 * np.random.default_rng(9).standard_normal(MEDIUM.n_edges)
    few, many = (signal + noise(MEDIUM, n, 1) for n in (40, 640))
    first, second = (measured(MEDIUM, x, selected(MEDIUM, x, 300))[0] for x in (few, many))
    assert first.jaccard < second.jaccard


def test_resamples_of_noise_agree_more_than_new_samples_do():
    """Why it gets no interval, and a high figure proves little (docs/concepts/faithfulness.md)."""
    samples = [noise(MEDIUM, 64, seed) for seed in range(12)]
    circuits = [selected(MEDIUM, sample, 300) for sample in samples]
    between = np.mean([overlap(a.mask, b.mask) for i, a in enumerate(circuits) for b in circuits[:i]])
    found, _ = measured(MEDIUM, samples[0], circuits[0])
    assert found.verdict == "unstable"
    assert found.jaccard > 1.5 * between


def test_resamples_without_a_circuit_agree_about_nothing():
    """17 prompts want the edge embed -> logits, 16 one that leads nowhere: many resamples find no circuit at all."""
    place = fixed(SMALL)[1]
    per_example = np.zeros((33, SMALL.n_edges))
    per_example[:17, place["embed->logits"]] = 1
    per_example[17:, place["embed->mlp0"]] = 1
    found, inclusion = measured(SMALL, per_example, selected(SMALL, per_example, 1), ["same"] * 33)
    n = inclusion[0, -1] * RESAMPLES
    assert 0.3 < n / RESAMPLES < 0.8
    assert found.jaccard == pytest.approx(n * (n - 1) / (RESAMPLES * (RESAMPLES - 1)))


def test_the_overlap_of_halves_stands_beside_that_of_resamples():
    """Of pure noise, resamples agree more than circuits of new prompts would; halves do not."""
    signal = 0.5 * np.random.default_rng(9).standard_normal(MEDIUM.n_edges)
    for strength in (0, 1):
        per_example = strength * signal + noise(MEDIUM, 64, 1)
        found, _ = measured(MEDIUM, per_example, selected(MEDIUM, per_example, 300))
        low, high = found.interval
        assert low < found.split_half < high
        assert strength or high < found.jaccard
        assert f"halves of the groups overlap by {found.split_half:.2f} (95 % interval {low:.2f} to" in found.sentence


def test_under_32_prompts_there_is_no_verdict_but_there_are_figures():
    per_example = np.repeat(noise(SMALL, 1), 32, axis=0)
    kept = selected(SMALL, per_example, 30)
    enough, _ = measured(SMALL, per_example, kept)
    found, inclusion = measured(SMALL, per_example[1:], kept)
    assert (enough.verdict, enough.reason) == ("stable", "")
    assert (found.verdict, found.reason) == ("no verdict", "31 search prompts are fewer than 32")
    assert found.jaccard == 1.0
    assert inclusion is not None
    assert found.sentence.startswith("no verdict (31 search prompts are fewer than 32): mean Jaccard 1.00 over 200")


@pytest.mark.parametrize(("rule", "n", "why"), [("decisions", 9, "no selection by scores"), ("signed", 0, "no edges")])
def test_what_was_not_selected_by_scores_is_not_measured(rule, n, why):
    kept = selected(SMALL, noise(SMALL), n)
    kept = Kept(kept.mask, replace(kept.selected, rule=rule))
    found, inclusion = measured(SMALL, noise(SMALL), kept)
    assert (found.verdict, found.jaccard, inclusion) == ("not measured", None, None)
    assert why in found.sentence


def test_the_same_seed_draws_the_same_and_another_seed_others():
    per_example = noise(SMALL)
    kept = selected(SMALL, per_example, 30)
    first, again, other = (measured(SMALL, per_example, kept, seed=seed) for seed in (3, 3, 4))
    assert first[0] == again[0]
    assert (first[1] == again[1]).all()
    assert first[0] != other[0]


def test_it_can_be_stopped_between_resamples():
    class Impatient(Quiet):
        def step(self, done, note=""):
            if done == 5:
                raise Cancelled("stopped")

    per_example = noise(SMALL)
    kept = selected(SMALL, per_example, 60)
    with pytest.raises(Cancelled):
        stability_of(SMALL, per_example, SMALL.legal, ["a"] * 40, kept, 0, Impatient())


@pytest.mark.parametrize("rule", RULES)
def test_the_first_of_a_ranking_are_the_whole_rankings_first(rule):
    scores = random_scores(SMALL, 3)
    whole = rank(SMALL, scores, SMALL.legal, rule)
    for n in (0, 1, 17, SMALL.n_edges + 5):
        assert (rank(SMALL, scores, SMALL.legal, rule, n).order == whole.order[:n]).all()


def judged(per_example=None, **options):
    weights = random_scores(SMALL, 1).clip(0)
    search, held_out = (split_of(Additive(weights, np.ones(40)), name) for name in ("search", "held_out"))
    plan = Plan((0.1, 1.0), random_circuits=0, band_circuits=0)
    options.setdefault("kept", rank(SMALL, weights, SMALL.legal, "signed").select(20))
    return judge(
        SMALL,
        weights,
        SMALL.legal,
        search=search,
        held_out=held_out,
        plan=plan,
        progress=Quiet(),
        per_example=per_example,
        **options,
    )


def test_a_judgement_measures_the_kept_circuit_or_says_why_it_does_not():
    per_example = noise(SMALL)
    result = judged(per_example)
    expected, inclusion = measured(SMALL, per_example, result.kept, [f"search-{i % 4}" for i in range(40)])
    assert result.report.stability == expected
    assert (result.inclusion == inclusion).all()
    without = judged(why_no_examples="too little memory")
    assert without.report.stability == Stability("not measured", "too little memory")
    assert without.inclusion is None
    assert without.report.stability.sentence == "not measured: too little memory"


def test_a_circuit_of_decisions_is_not_measured_in_a_judgement():
    mask = SMALL.mask_of_edges(["embed->mlp0", "mlp0->logits"])
    result = judged(noise(SMALL), kept=Kept(mask, Selected("hypothesis", 2, 2)))
    assert result.report.stability.verdict == "not measured"
