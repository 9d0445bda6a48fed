"""Faithfulness, its areas, bootstrap intervals and the behaviour's verdict, against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analytic_measure import SMALL, Additive, split_of
from hypothesis import given
from hypothesis import strategies as st

from acdc.circuit import Selected
from acdc.errors import Cancelled, ModelError
from acdc.evaluation.areas import areas_of, trapezoid_weights
from acdc.evaluation.behaviour import verdict_on
from acdc.evaluation.bootstrap import mean_interval
from acdc.evaluation.curve import sizes_of
from acdc.evaluation.editing import complement
from acdc.evaluation.faithfulness import can_divide_by, point_of, scale_of
from acdc.evaluation.measuring import Ledger
from acdc.evaluation.outcomes import Outcome
from acdc.progress import Quiet
from acdc.report import Point
from acdc.selection import GRID

EMPTY = np.zeros_like(SMALL.legal)


def outcome(metric, kl=0.0, correct=True):
    metric = np.asarray(metric, dtype=np.float32)
    return Outcome(metric, np.full(metric.shape, kl, np.float32), np.full(metric.shape, correct), -np.exp(-metric))


def a_curve(f_of, fractions=GRID):
    return [Point("held_out", "signed", x, 0, 0, 0.0, f_of(x), 0.0, None, 1.0, (0.0,) * 5) for x in fractions]


# -- areas -----------------------------------------------------------------------------------------------------------


def test_linear_weights_are_those_of_the_published_grid():
    weights = trapezoid_weights(np.array(GRID))
    assert weights == pytest.approx([0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25], abs=1e-12)
    assert weights.sum() == pytest.approx(0.999)


def test_log_weights_are_those_of_the_published_grid():
    x = np.log(GRID)
    weights = trapezoid_weights(x) / (x[-1] - x[0])
    expected = [0.050, 0.116, 0.116, 0.100, 0.116, 0.116, 0.100, 0.116, 0.116, 0.050]
    assert weights == pytest.approx(expected, abs=6e-4)
    assert weights.sum() == pytest.approx(1)


def test_a_useless_ranking_has_the_published_random_row():
    areas = areas_of(a_curve(lambda x: float(x == 1)))
    assert (areas.cpr, areas.cmd) == (pytest.approx(0.25), pytest.approx(0.749))
    assert (areas.cpr_log, areas.cmd_log) == (pytest.approx(0.050, abs=6e-4), pytest.approx(0.950, abs=6e-4))


def test_a_perfect_curve_has_cmd_zero():
    areas = areas_of(a_curve(lambda x: 1.0))
    assert (areas.cpr, areas.cmd, areas.cpr_log, areas.cmd_log) == pytest.approx((0.999, 0, 1, 0))


def test_overshoot_raises_cpr_above_one_and_costs_cmd():
    areas = areas_of(a_curve(lambda x: 2.0))
    assert (areas.cpr, areas.cmd) == pytest.approx((1.998, 0.999))


def test_areas_are_withheld_where_one_f_is():
    areas = areas_of(a_curve(lambda x: None if x == 0.1 else 1.0))
    assert (areas.split, areas.rule, areas.cpr, areas.cmd, areas.cpr_log) == ("held_out", "signed", None, None, None)


def test_a_single_size_has_no_area_and_a_size_of_zero_no_logarithm():
    assert areas_of(a_curve(lambda x: 1.0, [0.5])).cpr is None
    from_zero = areas_of(a_curve(lambda x: 1.0, [0.0, 0.5, 1.0]))
    assert (from_zero.cpr, from_zero.cpr_log) == pytest.approx((1.0, 1.0))
    assert areas_of(a_curve(lambda x: 1.0, [0.0, 1.0])).cpr_log is None


def test_sizes_are_whole_shares_and_every_size_on_a_graph_too_small_for_them():
    assert [size.n for size in sizes_of(GRID, 32_491)] == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert [size.n for size in sizes_of(GRID, 32)] == list(range(33))
    assert [size.fraction for size in sizes_of(GRID, 4)] == [0, 0.25, 0.5, 0.75, 1]
    assert [size.n for size in sizes_of((0.5, 1.0), 32)] == [16, 32]  # nothing collapses
    assert [size.n for size in sizes_of((1e-6, 0.5), 70_651)] == [35_325]  # too large to try every size


# -- faithfulness ----------------------------------------------------------------------------------------------------


def test_f_is_a_ratio_of_means_and_not_a_mean_of_ratios():
    scale = scale_of(outcome([10, 1.0] * 6), outcome([0, 0.5] * 6), "ab" * 6, 0)
    point = point_of(outcome([5, 1.0] * 6), scale, "search", Selected("signed", 7, 5), 0.1)
    assert point.f == pytest.approx((3 - 0.25) / (5.5 - 0.25))
    assert (point.split, point.rule, point.asked_for, point.connected) == ("search", "signed", 7, 5)


@given(st.lists(st.floats(1, 3), min_size=10, max_size=20), st.lists(st.floats(-1, 0), min_size=20, max_size=20))
def test_f_of_the_empty_circuit_is_zero_and_of_the_model_one(full, empty):
    full, empty = outcome(full), outcome(empty[: len(full)])
    scale = scale_of(full, empty, ["g"] * len(full.metric), 0)
    selected = Selected("signed", 0, 0)
    assert point_of(empty, scale, "search", selected, 0).f == pytest.approx(0, abs=1e-5)
    assert point_of(full, scale, "search", selected, 1).f == pytest.approx(1, abs=1e-5)


def test_f_is_withheld_where_the_denominator_may_have_either_sign():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(40)
    noise -= noise.mean() - 0.01
    assert not scale_of(outcome(noise), outcome(np.zeros(40)), ["g"] * 40, 0).can_divide
    assert scale_of(outcome(noise + 1), outcome(np.zeros(40)), ["g"] * 40, 0).can_divide
    assert scale_of(outcome(noise - 1), outcome(np.zeros(40)), ["g"] * 40, 0).can_divide


def test_f_is_withheld_of_a_single_prompt_and_of_few_that_disagree():
    assert not scale_of(outcome([3.0]), outcome([0.0]), "a", 0).can_divide
    assert not scale_of(outcome([3.0, 0.5]), outcome([0.0, 0.0]), "ab", 0).can_divide
    assert scale_of(outcome([3.0, 2.9]), outcome([0.0, 0.0]), "ab", 0).can_divide


@pytest.mark.parametrize("n", [2, 3, 5, 9])
def test_noise_is_a_denominator_in_one_of_twenty_samples_however_few_the_prompts(n):
    noise = np.random.default_rng(0).standard_normal((2000, n))
    taken = sum(can_divide_by(row, np.zeros(n), ["g"] * n, 0) for row in noise)
    assert taken / 2000 == pytest.approx(0.05, abs=0.015)


def test_f_is_withheld_where_the_denominator_is_rounding():
    assert not scale_of(outcome(np.full(9, 10.00001)), outcome(np.full(9, 10.0)), ["g"] * 9, 0).can_divide
    assert not scale_of(outcome(np.zeros(9)), outcome(np.zeros(9)), ["g"] * 9, 0).can_divide


def test_kl_share_is_withheld_where_the_empty_circuit_is_the_model():
    scale = scale_of(outcome([1, 2.0]), outcome([0, 0.0], kl=0.0), "ab", 0)
    assert point_of(outcome([1, 1.0], kl=0.3), scale, "search", Selected("signed", 1, 1), 0.1).kl_share is None
    scale = scale_of(outcome([1, 2.0]), outcome([0, 0.0], kl=2.0), "ab", 0)
    assert point_of(outcome([1, 1.0], kl=0.5), scale, "search", Selected("signed", 1, 1), 0.1).kl_share == 0.25


# -- intervals and the verdict ---------------------------------------------------------------------------------------


def test_the_interval_is_that_of_the_normal_mean():
    values = np.random.default_rng(0).standard_normal(400)
    interval = mean_interval(values, [str(i) for i in range(400)], 0)
    half = 1.96 * values.std() / 20
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_groups_are_drawn_whole_where_there_are_ten():
    values = np.repeat(np.arange(10.0), 50)  # within a group all alike: 500 examples say no more than ten
    groups = [f"g{int(value)}" for value in values]
    by_group = mean_interval(values, groups, 0)
    by_example = mean_interval(values[values < 9], [g for g in groups if g != "g9"], 0)
    assert (by_group.unit, by_group.n_units) == ("group", 10)
    assert (by_example.unit, by_example.n_units) == ("example", 450)
    assert by_group.high - by_group.low > 5 * (by_example.high - by_example.low)


def test_a_mean_over_groups_weighs_examples():
    values = np.array([1.0] * 100 + [0.0] * 9)
    groups = ["large"] * 100 + [f"small-{i}" for i in range(9)]
    interval = mean_interval(values, groups, 0)
    assert interval.unit == "group"
    assert interval.contains(float(values.mean()))


def test_values_and_groups_must_agree():
    with pytest.raises(ValueError, match="2 values and 1 groups"):
        mean_interval(np.zeros(2), ["a"], 0)


def verdict(difference, accuracy, chance=0.5, n=40):
    noise = np.tile([-1.0, 1.0], n // 2)
    correct = np.arange(n) < round(accuracy * n)
    return verdict_on(noise + difference, np.zeros(n), correct, ["g"] * n, chance, 0)


@pytest.mark.parametrize(
    ("difference", "accuracy", "chance", "expected"),
    [
        (2.0, 1.0, 0.5, "shown"),
        (2.0, 0.75, 0.5, "shown"),
        (2.0, 0.725, 0.5, "weak"),  # below half way from chance to one
        (2.0, 0.6, 0.1, "shown"),
        (2.0, 0.4, 0.5, "weak"),  # below chance, but not clearly
        (2.0, 0.1, 0.5, "absent"),  # answers against the task
        (0.1, 1.0, 0.5, "absent"),  # corrupting the prompt changes nothing that could be told from chance
        (-2.0, 1.0, 0.5, "absent"),
    ],
)
def test_the_verdict_follows_interval_and_accuracy(difference, accuracy, chance, expected):
    behaviour = verdict(difference, accuracy, chance)
    assert behaviour.verdict == expected
    assert behaviour.interval[0] < difference < behaviour.interval[1]
    assert (behaviour.accuracy_clean, behaviour.chance, behaviour.n_examples) == (pytest.approx(accuracy), chance, 40)
    assert behaviour.clustered_by == "example"


def test_a_handful_of_prompts_shows_nothing():
    assert verdict(5.0, 1.0, n=4).verdict == "weak"
    assert verdict(5.0, 1.0, n=6).verdict == "shown"


# -- the ledger ------------------------------------------------------------------------------------------------------


def test_equal_circuits_are_measured_once_and_handed_over_in_pieces():
    measure = Additive(SMALL.legal * 1.0, np.ones(100))
    ledger = Ledger(split_of(measure, "search"), Quiet())
    first = SMALL.mask_of_edges(["embed->logits"])
    outcomes = ledger.all_of([EMPTY, first, SMALL.legal, EMPTY])
    assert [float(one.metric[0]) for one in outcomes] == pytest.approx([0, 1 / SMALL.n_edges, 1, 0])
    assert measure.calls == [2, 1]  # 256 rows a call hold two circuits of a hundred prompts
    ledger(first)
    assert ledger.measured == 3
    assert ledger.has(first)
    assert not ledger.has(complement(SMALL, first))


def test_measuring_stops_where_progress_says_so():
    class Stop(Quiet):
        def step(self, done: int, note: str = "") -> None:
            if done >= 2:
                raise Cancelled("stopped")

    measure = Additive(SMALL.legal * 1.0, np.ones(300))
    masks = [SMALL.mask_of_edges([name]) for name in ("embed->logits", "embed->mlp0", "mlp0->logits", "mlp1->logits")]
    with pytest.raises(Cancelled):
        Ledger(split_of(measure, "search"), Stop()).all_of(masks)
    assert measure.calls == [1, 1]


def test_a_number_that_is_not_finite_never_leaves():
    class Broken(Additive):
        def __call__(self, masks):
            outcomes = super().__call__(masks)
            return replace(outcomes, metric=outcomes.metric * np.nan)

    with pytest.raises(ModelError, match="held_out"):
        Ledger(split_of(Broken(SMALL.legal * 1.0, np.ones(3)), "held_out"), Quiet())(EMPTY)


# -- guarded areas ---------------------------------------------------------------------------------------------------


def test_a_size_that_predicts_no_better_than_nothing_counts_as_a_whole_miss_at_least():
    """f of 1 by pairs of edges that cancel, while KL is the empty circuit's or more; and an f that is worse still."""
    fractions = (0.25, 0.5, 0.75, 1.0)
    rows = zip(fractions, (1.0, 1.0, 5.0, 1.0), (1.0, 0.4, 1.5, 0.0), strict=True)
    points = [Point("held_out", "signed", x, 0, 0, 0.0, f, 0.0, share, 1.0, (0.0,) * 5) for x, f, share in rows]
    areas = areas_of(points)
    weights = trapezoid_weights(np.array(fractions))
    assert areas.cmd == pytest.approx(weights @ [0, 0, 4, 0])
    assert areas.cmd_guarded == pytest.approx(weights @ [1, 0, 4, 0])
    assert areas.kl_area == pytest.approx(weights @ [1.0, 0.4, 1.5, 0.0])


def test_a_kl_share_that_is_not_known_guards_nothing_and_has_no_area():
    areas = areas_of([replace(point, kl_share=None) for point in a_curve(lambda x: 1.0)])
    assert (areas.cmd_guarded, areas.kl_area) == (pytest.approx(0), None)
