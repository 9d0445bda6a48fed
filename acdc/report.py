"""What an evaluation says about a circuit: plain numbers and words, as they are stored with it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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


def two_digits(value: float | None) -> str:
    """As people read it; a figure that is not there was withheld."""
    return "withheld" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class Point:
    """One circuit, judged on one set of prompts.

    split: search or held_out. rule: as in Selected. fraction: of all edges, asked for. f: normalised faithfulness (a
    ratio of means), None where m(M) - m(empty) is too small to divide by. kl: KL(model || circuit) in nats, kl_share:
    over that of the empty circuit. quantiles: of the metric over examples at 5, 25, 50, 75 and 95 %.
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

    @property
    def figures(self) -> str:
        """f and KL share to two digits, for one line."""
        return f"f {two_digits(self.f)}, KL share {two_digits(self.kl_share)}"


@dataclass(frozen=True)
class Areas:
    """CPR = area under f, CMD = area under |1 - f|, trapezoid over the grid; `_log` over the logarithm of size."""

    split: str
    rule: str
    cpr: float | None
    cmd: float | None
    cpr_log: float | None
    cmd_log: float | None


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
    best first; without any that met, `point` is the first of them. chosen_on: search where the circuit meets the
    conditions on the search prompts too (the rule), held_out where on the held-out prompts alone. looks: how many
    circuits met them on the search prompts and were then tried held out.
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
    others_in_half: edges outside it that more than half have.
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

    @property
    def sentence(self) -> str:
        """The whole of it for people, in one line."""
        if self.jaccard is None or self.jaccard_with_kept is None:
            return f"{self.verdict}: {self.reason}"
        verdict = f"{self.verdict} ({self.reason})" if self.reason else self.verdict
        drawn = f"{self.n_units} {self.unit}s"
        if self.unit == "group":
            drawn += f" ({self.n_examples} prompts)"
        return (
            f"{verdict}: mean Jaccard {self.jaccard:.2f} over {self.n_resamples} resamples of {drawn}, "
            f"{self.jaccard_with_kept:.2f} with the circuit itself; more than half of them have {self.kept_in_half:,} "
            f"of its edges and {self.others_in_half:,} others"
        )


@dataclass(frozen=True)
class Report:
    """The evaluation of a scored circuit. `kept`: the stored selection itself, on both splits."""

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

    def __repr__(self) -> str:
        """One line: a notebook shows it, and hundreds of points say less."""
        verdict = f"behaviour {self.behaviour.verdict}, stability {self.stability.verdict}"
        return f"Report({verdict}, {len(self.points)} points on the curve, {self.headline})"

    @property
    def headline(self) -> str:
        """k* and the stored selection on held-out prompts, in one line."""
        star = "not looked for" if self.k_star is None else _size_of_k_star(self.k_star)
        own = next((point for point in self.kept if point.split == "held_out"), None)
        figures = "f and KL share not measured" if own is None else own.figures
        return f"k* {star}, held out: {figures}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`, after JSON. Raises TypeError or ValueError."""
        return from_plain(cls, data)


def _size_of_k_star(star: KStar) -> str:
    return f"{star.point.connected:,} edges" if star.met else "missed"
