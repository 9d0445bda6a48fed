"""The overlap of circuits from disjoint halves, and its interval: against brute force, identities, planted truths."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from analytic_measure import MEDIUM, SMALL, TINY, random_scores

from acdc.errors import Cancelled
from acdc.evaluation.bootstrap import units_of
from acdc.evaluation.reselection import Reselection
from acdc.evaluation.split_half import BLOCKS, SPLITS, T, _halves, split_half
from acdc.progress import Quiet
from acdc.selection import RULES, rank

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from planted_scores import NOISES, SIGNALS, Planted
from stability_coverage import measure, planted


def alone(n):
    """Every example its own group."""
    return [str(i) for i in range(n)]


def measured(graph, per_example, n, rule="signed", groups=None, seed=0, progress=None):
    units = units_of(alone(len(per_example)) if groups is None else groups)
    reselection = Reselection(graph, per_example.astype(np.float32), graph.legal, rule, n)
    return split_half(reselection, units, seed, progress or Quiet())


def circuit(graph, examples, n, rule="signed"):
    return rank(graph, graph.matrix_of(examples.astype(np.float64).mean(0)), graph.legal, rule).select(n).mask


def overlap(one, other):
    return (one & other).sum() / (one | other).sum() if (one | other).any() else 0.0


def tiny_examples(n, seed):
    """Whole numbers, whose sums and means tie in the same way however they are added."""
    return np.stack([4 * TINY.in_order(random_scores(TINY, seed + i)) for i in range(n)])


def test_the_estimate_is_the_mean_over_all_ways_to_cut_the_prompts_in_half():
    per_example = tiny_examples(10, 3) + 2 * np.arange(11)
    every = []
    for half in itertools.combinations(range(10), 5):
        chosen = np.isin(np.arange(10), half)
        every.append(overlap(*(circuit(TINY, per_example[part], 6) for part in (chosen, ~chosen))))
    found = measured(TINY, per_example, 6)
    assert 0.2 < np.mean(every) < 0.9
    assert found.jaccard == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(SPLITS))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [12, 33])
def test_the_interval_is_that_of_plain_loops(rule, n):
    """The jackknife written out, and Wilson's interval as what it is: the shares p no further than t standard errors
    from the estimate, the errors those of p."""
    per_example = tiny_examples(n, 5) + np.arange(11)
    groups = units_of(alone(n))
    means, either = [], []
    for counts in _halves(groups, min(BLOCKS, n), 7):
        pairs = [
            [circuit(TINY, per_example[row > 0], 5, rule) for row in counts[2 * i : 2 * i + 2]] for i in range(SPLITS)
        ]
        means.append(np.mean([overlap(*pair) for pair in pairs]))
        either.append(np.mean([(one | other).sum() for one, other in pairs]))
    g = len(means) - 1
    variance = (g - 1) / g * sum((mean - np.mean(means[1:])) ** 2 for mean in means[1:])
    inner = (means[0] * either[0] + 1) / (either[0] + 2)
    edges = min(either[0], inner * (1 - inner) / variance)
    shares = np.linspace(0, 1, 1_000_001)
    inside = shares[np.abs(shares - means[0]) <= T[g] * np.sqrt(shares * (1 - shares) / edges)]
    found = measured(TINY, per_example, 5, rule, seed=7)
    assert 0 < found.low < found.jaccard < found.high < 1
    assert found.jaccard == pytest.approx(means[0], abs=1e-9)
    assert (found.low, found.high) == pytest.approx((inside[0], inside[-1]), abs=3e-6)


@pytest.mark.parametrize("n", [10, 15, 16, 17, 64, 101])
def test_halves_are_disjoint_and_every_unit_is_left_out_once(n):
    units = units_of([f"g{i}" for i in range(n) for _ in range(1 + i % 3)])
    first_of = np.unique(units.member_of, return_index=True)[1]
    rounds = list(_halves(units, min(BLOCKS, n), 1))
    assert len(rounds) == 1 + min(BLOCKS, n)
    left_out = []
    for counts in rounds:
        assert (counts == counts[:, first_of][:, units.member_of]).all(), "a group stays whole"
        one, other = counts[::2, first_of], counts[1::2, first_of]
        assert (one + other <= 1).all()
        assert (one.sum(1) == other.sum(1)).all()
        never = np.nonzero((one + other).sum(0) == 0)[0].tolist()
        assert one.sum(1)[0] == (n - len(never)) // 2
        left_out.append(never)
    assert left_out[0] == []
    assert sorted(itertools.chain(*left_out)) == list(range(n))
    assert max(map(len, left_out[1:])) - min(map(len, left_out[1:])) <= 1


def test_the_quantiles_are_those_of_students_t():
    x = np.linspace(0, 3, 300_001)
    for blocks, quantile in T.items():
        df = blocks - 1
        density = (1 + x**2 / df) ** (-(df + 1) / 2)
        tail = np.linspace(3, 3000, 3_000_001)
        beyond = np.trapezoid((1 + tail**2 / df) ** (-(df + 1) / 2), tail)
        within = np.trapezoid(np.where(x <= quantile, density, 0), x)
        assert within / (np.trapezoid(density, x) + beyond) == pytest.approx(0.95, abs=2e-4)


def test_prompts_that_all_say_the_same_leave_what_one_more_edge_could_do():
    per_example = np.repeat(np.random.default_rng(0).standard_normal((1, MEDIUM.n_edges)), 40, axis=0)
    found = measured(MEDIUM, per_example, 700)
    edges = circuit(MEDIUM, per_example, 700).sum()
    assert (found.jaccard, found.high) == (1, 1)
    assert found.low == pytest.approx(edges / (edges + T[BLOCKS] ** 2))


def test_circuits_without_edges_agree_about_nothing():
    found = measured(SMALL, np.full((40, SMALL.n_edges), -1.0) + np.eye(SMALL.n_edges)[3], 1)
    assert (found.jaccard, found.low, found.high) == (0, 0, 1)


@pytest.mark.parametrize(("groups", "is_measured"), [(alone(9), False), (alone(10), True), (["a"] * 10, True)])
def test_fewer_than_ten_units_are_not_cut_in_half(groups, is_measured):
    found = measured(SMALL, np.random.default_rng(0).standard_normal((len(groups), SMALL.n_edges)), 20, groups=groups)
    assert (found is not None) == is_measured


def test_it_can_be_stopped_between_splits_and_counts_to_its_total():
    class Watching(Quiet):
        total, done, stop_at = 0, 0, None

        def phase(self, name, total):
            self.total = total

        def step(self, done, note=""):
            self.done = done
            if done == self.stop_at:
                raise Cancelled("stopped")

    per_example = np.random.default_rng(0).standard_normal((20, SMALL.n_edges))
    watching = Watching()
    measured(SMALL, per_example, 20, progress=watching)
    assert watching.done == watching.total == SPLITS * (BLOCKS + 1)
    watching.stop_at = SPLITS + 1
    with pytest.raises(Cancelled):
        measured(SMALL, per_example, 20, progress=watching)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("noise", NOISES)
def test_planted_scores_have_the_means_that_were_planted(signal, noise):
    one = Planted(SMALL, 20, signal, 1.0, noise, 32)
    scores, groups = one.sample(4000, np.random.default_rng(0))
    size = np.exp(0.5) if noise == "sizes" else 1
    rare = 6 / 16 * one.directions[0] if noise == "rare" else 0
    spread = scores.std(0) / np.sqrt(len(set(groups)))
    assert (np.abs(scores.mean(0) - size * one.means - rare) < 5 * spread).all()


@pytest.mark.parametrize("one", planted(), ids=lambda one: one.name)
def test_the_edges_that_are_planted_hang_together(one):
    if one.signal != "nothing":
        assert one.circuit(one.means[None].astype(np.float32)).sum() > one.asked_for / 2


@pytest.mark.parametrize(
    ("one", "bootstrap_covers"),
    [
        (Planted(TINY, 4, "power", 0.4, "shared", 16), True),
        (Planted(SMALL, 40, "cliff", 0.8, "independent", 32), False),
    ],
)
def test_the_interval_contains_the_truth_where_a_percentile_bootstrap_does_not(one, bootstrap_covers):
    """A few samples of two of the truths of make bench-coverage, which has the whole grid."""
    row = measure(one, samples=30, pairs=400)
    assert 0.1 < row.half < row.full
    assert abs(row.estimate - row.half) < 0.08
    assert row.covered >= 0.9
    assert (row.bootstrap_covered >= 0.9) == bootstrap_covers
