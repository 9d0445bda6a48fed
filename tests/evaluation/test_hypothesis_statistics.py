"""The hypothesis tests' statistics, against figures worked out by hand, brute force and their own level."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from acdc.evaluation.hypotheses import FEWEST_CIRCUITS
from acdc.evaluation.statistics import (
    ALPHA,
    ROUNDING,
    claimed_equivalence,
    distance,
    equivalence,
    independence,
    partial_necessity,
    rounding_of,
    sufficiency,
    superfluous,
)


def above(share, n=100, ties=0):
    """A circuit that is above the model on a share of n prompts, below on the rest, and equal on some more; and what is
    no more than rounding."""
    k = round(share * n)
    return np.array([1.0] * k + [-1.0] * (n - k) + [0.0] * ties), np.zeros(n + ties), 1e-6


@pytest.mark.parametrize(("share", "p"), [(0.68, 0.062), (0.70, 0.025), (0.32, 0.062), (0.30, 0.025)])
def test_equivalence_has_the_p_values_of_its_formula(share, p):
    assert equivalence(*above(share)).p == pytest.approx(p, abs=5e-4)


def test_equivalence_is_the_sum_over_all_counts_as_far_from_even_odds():
    found = equivalence(*above(0.75, 20))
    far = sum(comb(20, k) * 0.6**k * 0.4 ** (20 - k) for k in range(21) if abs(k / 20 - 0.5) >= 0.25)
    assert found.p == pytest.approx(far)
    assert (found.statistic, found.n) == (0.75, 20)


def test_ties_are_dropped_and_nothing_but_ties_is_no_test():
    assert equivalence(*above(0.7, ties=900)) == equivalence(*above(0.7))
    assert equivalence(np.ones(9), np.ones(9), 0.0) is None
    assert claimed_equivalence(np.ones(9), np.ones(9), 0.0) is None


def test_differences_within_rounding_are_ties():
    model = np.full(100, 12.0)
    rounding = rounding_of(model)
    for circuit in (model - 1e-9, model + rounding / 2):
        assert equivalence(circuit, model, rounding) is None
        assert claimed_equivalence(circuit, model, rounding) is None
    circuit = model + 1e-9
    circuit[:20] += [2 * rounding] * 15 + [-2 * rounding] * 5
    assert equivalence(circuit, model, rounding) == equivalence(*above(0.75, 20))


def test_equivalence_is_claimed_only_with_many_prompts_at_even_odds():
    assert claimed_equivalence(*above(0.5, 100)).p > ALPHA / 2
    assert claimed_equivalence(*above(0.5, 400)).p < 1e-3
    assert claimed_equivalence(*above(0.6, 400)).p == pytest.approx(0.5, abs=0.05)  # on the null's edge
    assert claimed_equivalence(*above(0.9, 400)).p == pytest.approx(1)
    tail = sum(comb(100, k) * 0.6**k * 0.4 ** (100 - k) for k in range(53))
    assert claimed_equivalence(*above(0.52, 100)).p == pytest.approx(tail)


@pytest.mark.parametrize(("beaten", "p"), [(96, 0.024), (95, 0.058), (100, 0.9**100), (0, 1.0)])
def test_sufficiency_needs_96_of_100_random_circuits(beaten, p):
    of_random = np.array([2.0] * beaten + [0.5] * (100 - beaten))
    found = sufficiency(1.0, of_random, 0.0)
    assert (found.statistic, found.p) == (beaten, pytest.approx(p, abs=5e-4))


@pytest.mark.parametrize("of_random", [np.ones(30), 1 + 1e-9 * np.linspace(-1, 1, 30)])
def test_random_circuits_that_are_as_near_or_far_up_to_rounding_count_for_no_circuit_and_are_told(of_random):
    for test in (sufficiency, partial_necessity, superfluous):
        found = test(1.0, of_random, 1e-6)
        assert (found.statistic, found.n, found.ties) == (0, 30, 30)


def test_only_random_circuits_that_are_clearly_further_are_beaten():
    of_random = np.array([2.0] * 12 + [1.0] * 5 + [0.5] * 3)
    assert (sufficiency(1.0, of_random, 1e-6).statistic, sufficiency(1.0, of_random, 1e-6).ties) == (12, 5)
    assert partial_necessity(1.0, of_random, 1e-6).statistic == 3
    assert superfluous(1.0, of_random, 1e-6).statistic == 3


@pytest.mark.parametrize(("n_edges", "most"), [(1, 84), (10, 81), (100, 78), (1000, 76)])
def test_an_edge_is_superfluous_up_to_the_published_counts(n_edges, most):
    def exceeds(count):
        return superfluous(1.0, np.array([0.5] * count + [2.0] * (100 - count)), 0.0).p * n_edges < ALPHA

    assert exceeds(most)
    assert not exceeds(most + 1)


def test_fewer_random_circuits_than_the_fewest_could_never_reject():
    assert 0.9**FEWEST_CIRCUITS < ALPHA < 0.9 ** (FEWEST_CIRCUITS - 1)


def test_independence_is_the_trace_of_centred_kernels():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(12), rng.standard_normal(12)
    width = np.median(np.abs(x[:, None] - y[None]))
    k, kernel_of_y = (np.exp(-((z[:, None] - z[None]) ** 2) / (2 * width**2)) for z in (x, y))
    h = np.eye(12) - 1 / 12
    assert independence(x, y, 0.0, 0).statistic == pytest.approx(np.trace(h @ k @ h @ h @ kernel_of_y @ h) / 11**2)


def test_independence_is_rejected_for_what_depends_and_rarely_for_what_does_not():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(60)
    assert independence(x, x**2 + 0.1 * rng.standard_normal(60), 0.0, 0).p < 0.01  # no correlation, yet dependent
    false = [independence(*rng.standard_normal((2, 30)), 0.0, seed).p < ALPHA for seed in range(200)]
    assert sum(false) <= 20  # of 200 at 5 %: more than 20 has a chance below 1 %


def test_independence_cannot_be_told_of_numbers_that_do_not_differ():
    assert independence(np.ones(20), np.arange(20.0), 0.0, 0) is None
    assert independence(np.arange(3.0), np.arange(3.0), 0.0, 0) is None


def test_independence_cannot_be_told_of_numbers_that_differ_by_rounding_alone():
    """Twelve in float32, of a program that says the same on every prompt: a few of a hundred are some steps off."""
    complement, model = np.full(100, -12.0), np.full(100, 12.0)
    complement[:3] -= 2.3e-5
    model[99] += 2.3e-5
    rounding = rounding_of(complement, model)
    assert rounding == ROUNDING * (12 + 2.3e-5)
    assert independence(complement, model, rounding, 0) is None
    spread = np.linspace(-1, 1, 100)
    assert independence(spread, model, rounding, 0) is None
    assert independence(complement, spread, rounding, 0) is None


def test_what_complement_and_model_share_with_the_empty_circuit_is_no_dependence():
    """Answers differ in what the empty circuit gives them, and model and complement start from that."""
    rng = np.random.default_rng(3)
    answers, by_circuit, by_rest = rng.standard_normal((3, 60)) * [[1.0], [0.5], [0.01]]
    model, empty, complement = answers + by_circuit, answers, answers + by_rest
    assert independence(complement, model, 0.0, 0).p < 0.01
    assert independence(complement - empty, model, 0.0, 0).p > 0.1
    assert independence(empty + 0.1 * by_circuit - empty, model, 0.0, 0).p < 0.01


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.1, 0.7), (-12.0, -11.0), (3.0, 4.3)])
def test_permutations_that_are_level_with_what_was_seen_count_as_such(a, b):
    """Every value of one beside every value of the other: no order has less HSIC, and what is seen of it is rounding,
    of either sign."""
    assert independence(np.array([a, a, b, b]), np.array([0.0, 1.0, 0.0, 1.0]), 0.0, 0).p == 1.0
    assert independence(np.array([a, a, a, b, b, b]), np.array([5, 6.1, 6.1, 5, 6.1, 6.1]), 0.0, 0).p == 1.0


def test_small_differences_of_distant_numbers_are_told_apart_as_large_ones_are():
    rng = np.random.default_rng(2)
    x, noise = 1e-6 * rng.standard_normal((2, 40))
    assert independence(x, x + noise / 2 + 1000, 0.0, 0).p < 0.01
    p = [independence(*1e-6 * rng.standard_normal((2, 30)) + [[0], [1000]], 0.0, seed).p for seed in range(100)]
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) < ALPHA) <= 0.12  # of 100 at 5 %: more than 12 has a chance below 1 %


def test_the_distance_of_two_circuits_is_their_mean_difference():
    assert distance(np.array([1.0, 5.0]), np.array([2.0, 2.0])) == 2.0
