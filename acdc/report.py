"""What an evaluation says about a circuit: plain numbers and words, as they are stored with it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from acdc.numerals import count, two_digits
from acdc.plain import from_plain


@dataclass(frozen=True)
class Behaviour:
    """Is the behaviour there at all? `verdict` is shown, weak or absent; the interval is of m(clean) - m(corrupt),
    drawn over groups of examples or, where there are too few groups, over examples (`clustered_by`)."""

    verdict: str
    metric_clean: float
    metric_corrupt: float
    interval: tuple[float, float]
    accuracy_clean: float
    chance: float
    n_examples: int
    clustered_by: str = "example"

    @property
    def drawn_over(self) -> str:
        return drawn_over(self.clustered_by)


def drawn_over(unit: str) -> str:
    """What an interval speaks of, from what was drawn again for it: group or example."""
    if unit == "group":
        return "over templates (groups of prompts)"
    return "over prompts, as there are fewer than ten templates: nothing is said of other templates"


@dataclass(frozen=True)
class Point:
    """One circuit, judged on one set of prompts.

    split: search or held_out. rule: as in Selected. fraction: of all edges, asked for. f: normalised faithfulness (a
    ratio of means), None where m(M) - m(empty) is too small to divide by. kl: KL(model || circuit) in nats, kl_share:
    over that of the empty circuit. quantiles: of the metric over examples at 5, 25, 50, 75 and 95 %, kl_quantiles: of
    KL. answer_logprob: mean log P(right answer). The last two are None in reports from before they were measured.
    """

    split: str
    rule: str
    fraction: float
    asked_for: int
    connected: int
    metric: float
    f: float | None
    kl: float
    kl_share: float | None
    accuracy: float
    quantiles: tuple[float, float, float, float, float]
    kl_quantiles: tuple[float, float, float, float, float] | None = None
    answer_logprob: float | None = None

    @property
    def figures(self) -> str:
        """f and KL share to two digits, for one line."""
        return f"f {two_digits(self.f)}, KL share {two_digits(self.kl_share)}"


@dataclass(frozen=True)
class Areas:
    """CPR = area under f, CMD = area under |1 - f|, trapezoid over the grid; `_log` over the logarithm of size.

    cmd_guarded: CMD where a size whose KL is no less than the empty circuit's counts |1 - f| as at least 1.
    kl_area: area under the KL share. These two are None in reports from before they were measured.
    """

    split: str
    rule: str
    cpr: float | None
    cmd: float | None
    cpr_log: float | None
    cmd_log: float | None
    cmd_guarded: float | None = None
    kl_area: float | None = None


@dataclass(frozen=True)
class Band:
    """Random path-connected circuits matched to a point in connected edges and layer profile, held out."""

    rule: str
    fraction: float
    connected: int
    n_circuits: int
    f: tuple[float | None, ...]
    kl_share: tuple[float | None, ...]


@dataclass(frozen=True)
class KStar:
    """The smallest connected circuit with f in [.8, 1.2] and KL(C) <= KL(empty) / 2, held out.

    met: whether any size did. nearest: where none up to 2 % of the edges did, the points up to there that came closest,
    best first; where none did at all, the closest of all sizes, and `point` is the first of them. chosen_on: search
    where the circuit meets the conditions on the search prompts too (the rule), held_out where on the held-out prompts
    alone. looks: how many circuits met them on the search prompts and were then tried held out.
    """

    met: bool
    point: Point
    nearest: tuple[Point, ...] = ()
    chosen_on: str = "search"
    looks: int = 0


@dataclass(frozen=True)
class Stability:
    """Does the circuit stay when the search examples are drawn again? (acdc/evaluation/stability.py)

    verdict: stable, unstable, no verdict or not measured; reason: why, for the last two. jaccard: mean over pairs of
    resampled circuits, jaccard_with_kept: mean over resampled circuits and the kept one. unit: what was drawn, group or
    example, n_units of them. kept_in_half: edges of the circuit that more than half of the resampled circuits have;
    others_in_half: edges outside it that more than half have. split_half: Jaccard of circuits from disjoint halves of
    the units, mean over random splits, interval: its 95 % interval (acdc/evaluation/split_half.py); None with fewer
    than ten units and in reports from before they were measured.
    """

    verdict: str = "not measured"
    reason: str = "its report is from before it was"
    jaccard: float | None = None
    jaccard_with_kept: float | None = None
    n_resamples: int = 0
    n_examples: int = 0
    unit: str = "example"
    n_units: int = 0
    kept_in_half: int = 0
    others_in_half: int = 0
    split_half: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def drawn_over(self) -> str | None:
        """None where nothing was drawn."""
        return None if self.jaccard is None else drawn_over(self.unit)

    @property
    def _unit(self) -> str:
        return "group" if self.unit == "group" else "prompt"

    @property
    def sentence(self) -> str:
        """The whole of it for people, in one line."""
        if self.jaccard is None or self.jaccard_with_kept is None:
            return f"{self.verdict}: {self.reason}"
        verdict = f"{self.verdict} ({self.reason})" if self.reason else self.verdict
        drawn = count(self.n_units, self._unit)
        if self.unit == "group":
            drawn += f" ({count(self.n_examples, 'prompt')})"
        return (
            f"{verdict}: mean Jaccard {self.jaccard:.2f} over {self.n_resamples} resamples of {drawn}, "
            f"{self.jaccard_with_kept:.2f} with the circuit itself; more than half of them have {self.kept_in_half:,} "
            f"of its edges and {self.others_in_half:,} others{self._halves}"
        )

    @property
    def _halves(self) -> str:
        if self.split_half is None or self.interval is None:
            return ""
        low, high = self.interval
        return (
            f"; circuits from disjoint halves of the {self._unit}s overlap by {self.split_half:.2f} "
            f"(95 % interval {low:.2f} to {high:.2f})"
        )


@dataclass(frozen=True)
class KnockOut:
    """A set of the circuit's heads and MLPs, cut from the circuit and from the model. how: random, layer or greedy."""

    how: str
    nodes: tuple[str, ...]
    metric_circuit: float
    metric_model: float
    f_circuit: float | None
    f_model: float | None

    @property
    def metric_gap(self) -> float:
        return abs(self.metric_circuit - self.metric_model)

    @property
    def gap(self) -> float | None:
        """|f(C \\ K) - f(M \\ K)|, small for every K where a circuit is complete."""
        return None if self.f_circuit is None or self.f_model is None else abs(self.f_circuit - self.f_model)


@dataclass(frozen=True)
class Completeness:
    """complement: the model without the circuit, held out; its f is near 0 where the circuit is all there is."""

    complement: Point
    knock_outs: tuple[KnockOut, ...] = ()

    @property
    def worst(self) -> KnockOut | None:
        return max(self.knock_outs, key=lambda one: one.metric_gap, default=None)


@dataclass(frozen=True)
class Removal:
    """An edge of the circuit, removed from it alone, on held-out prompts.

    cost: m(C) - m(C without it), cost_f: in units of f, cost_kl: growth of KL(model || circuit) in nats; positive means
    that the edge helps. moved: mean |difference| of the metric per example. exceeds: how many removals of random edges
    it moved more than, superfluous: whether the test calls it so; None where the test was not asked for.
    """

    edge: str
    cost: float
    cost_f: float | None
    cost_kl: float
    moved: float
    exceeds: int | None = None
    superfluous: bool | None = None


@dataclass(frozen=True)
class Minimality:
    """n_edges: of the circuit; where `removals` are fewer, they were drawn at random. n_random: random paths that the
    test compared with."""

    n_edges: int
    removals: tuple[Removal, ...]
    n_random: int = 0

    @property
    def n_superfluous(self) -> int | None:
        return sum(bool(one.superfluous) for one in self.removals) if self.n_random else None


@dataclass(frozen=True)
class HypothesisTest:
    """One of the tests of Shi et al. (2024): statistic of n observations, p-value, whether its null is rejected at 5 %,
    and what that says. The first and the last two are None where nothing could be computed."""

    name: str
    statistic: float | None
    n: int
    p: float | None
    rejected: bool | None
    says: str


@dataclass(frozen=True)
class GroupFigures:
    """The circuit on one group of prompts, such as a template; f in the group's own scale."""

    split: str
    group: str
    n_examples: int
    metric: float
    metric_full: float
    f: float | None
    kl_share: float | None
    accuracy: float


@dataclass(frozen=True)
class Elsewhere:
    """The same circuit where cut edges carry something else: held out, in that ablation's own scale."""

    ablation: str
    metric_full: float
    metric_empty: float
    kl_empty: float
    kept: Point


@dataclass(frozen=True)
class Report:
    """The evaluation of a scored circuit. `kept`: the stored selection itself, on both splits. The parts after
    `stability` are empty where they were not asked for."""

    behaviour: Behaviour
    metric_full: Mapping[str, float]
    metric_empty: Mapping[str, float]
    kl_empty: Mapping[str, float]
    points: tuple[Point, ...]
    areas: tuple[Areas, ...]
    bands: tuple[Band, ...]
    k_star: KStar | None
    kept: tuple[Point, ...]
    kept_random: Band | None = None
    stability: Stability = Stability()
    elsewhere: tuple[Elsewhere, ...] = ()
    groups: tuple[GroupFigures, ...] = ()
    completeness: Completeness | None = None
    minimality: Minimality | None = None
    tests: tuple[HypothesisTest, ...] = ()

    def __repr__(self) -> str:
        """One line: a notebook shows it, and hundreds of points say less."""
        verdict = f"behaviour {self.behaviour.verdict}, stability {self.stability.verdict}"
        return f"Report({verdict}, {len(self.points)} points on the curve, {self.headline})"

    @property
    def headline(self) -> str:
        """k* and the stored selection on held-out prompts, in one line."""
        star = "not looked for" if self.k_star is None else _size_of_k_star(self.k_star)
        own = self.kept_held_out
        figures = "f and KL share not measured" if own is None else own.figures
        return f"k* {star}, held out: {figures}"

    @property
    def kept_held_out(self) -> Point | None:
        """The stored selection itself, held out."""
        return next((point for point in self.kept if point.split == "held_out"), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`, after JSON. Raises TypeError or ValueError."""
        return from_plain(cls, data)


def _size_of_k_star(star: KStar) -> str:
    return count(star.point.connected, "edge") if star.met else "missed"
