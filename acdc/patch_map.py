"""A patching map: the metric of every example with one thing changed at a time, over named axes. Torch-free.

The effect of a cell is the mean over examples of metric(changed run) - metric(base run). It is stored with its 95 %
bootstrap interval, beside the metric of every example, so that anything else can be computed from the file. Normalised,
it is divided by the total effect, the mean of metric(other run) - metric(base run): 1 means that the change takes the
base run all the way to the other one. What remains is the mean of metric(other run) - metric(changed run).

One file holds it all (see acdc.container).
"""

from __future__ import annotations

import csv
import heapq
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from acdc.circuit import Provenance
from acdc.container import pack, read_file, unpack
from acdc.errors import MapFileError
from acdc.evaluation.behaviour import MIN_UNITS
from acdc.evaluation.bootstrap import mean_interval, mean_intervals
from acdc.evaluation.faithfulness import ROUNDING, can_divide_by

FORMAT = "acdc-patch-map/1"
METRIC = "metric"
_MEASURED = ("per_example", "defined", "clean", "corrupt")
_DRAWN = ("effect", "low", "high", "remaining", "remaining_low", "remaining_high")
NO_OTHER_RUN = "the prompts have no corrupt run to compare with"
Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


MapKind = Literal["activation_patching", "path_patching", "causal_tracing", "attention_knockout"]


@dataclass(frozen=True)
class Axis:
    """A named axis of a map and what stands at each of its places."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Cells:
    """What a patching run measured.

    kind: one of `MapKind`. axes: the first is `metric`, with a name for each. per_example: the metric of each changed
    run [*axes, example]. defined: [*axes without metric], false where there is no such cell (a pair of nodes between
    which no path runs); numbers there are 0. clean, corrupt: the metric of the two unchanged runs [metric, example].
    base: which of them the changes were made in. groups: of each example. parameters: every choice that the numbers
    depend on. facts: numbers that a reader should know. has_other_run: false where not every prompt has one, and then
    the numbers of the base run stand in its place.
    """

    kind: str
    axes: tuple[Axis, ...]
    per_example: Numbers
    defined: Flags
    clean: Numbers
    corrupt: Numbers
    base: str
    groups: tuple[str, ...]
    parameters: Mapping[str, Any]
    facts: Mapping[str, float] = field(default_factory=dict)
    has_other_run: bool = True

    def __post_init__(self) -> None:
        shape = tuple(len(axis.labels) for axis in self.axes)
        n = len(self.groups)
        wanted = {"per_example": (*shape, n), "defined": shape[1:], "clean": (shape[0], n), "corrupt": (shape[0], n)}
        if self.base not in ("clean", "corrupt") or not self.axes or self.axes[0].name != METRIC:
            raise MapFileError(f"a map's base is clean or corrupt and its first axis {METRIC}, not {self.base!r}")
        for name, expected in wanted.items():
            array = getattr(self, name)
            if array.shape != expected:
                raise MapFileError(f"{name} is {array.shape}; the axes need {expected}")
            if not np.isfinite(array).all():
                raise MapFileError(f"{name} holds a value that is not a finite number")
            array.setflags(write=False)

    def __repr__(self) -> str:
        """One line: the arrays are as large as the map times the examples."""
        sizes = " x ".join(f"{len(axis.labels)} {axis.name}" for axis in self.axes[1:])
        measured = f"{', '.join(self.metrics)} of {len(self.groups)} examples"
        return f"Cells({self.kind}: {sizes}, {int(self.defined.sum()):,} cells, in the {self.base} run, {measured})"

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.axes[0].labels

    @property
    def base_metric(self) -> Numbers:
        """[metric, example]"""
        return self.clean if self.base == "clean" else self.corrupt

    @property
    def other_metric(self) -> Numbers:
        """[metric, example]"""
        return self.corrupt if self.base == "clean" else self.clean


@dataclass(frozen=True)
class Total:
    """The total effect: mean of metric(other run) - metric(base run), with its 95 % bootstrap interval."""

    effect: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Normalised:
    """A metric's effects over the denominator, the total effect: effect, low, high [*axes without metric]. The interval
    is that of the effect, divided: the denominator counts as exact. None of them where it is too small or cannot be
    judged, and then `withheld` says why.
    """

    effect: Numbers | None
    low: Numbers | None
    high: Numbers | None
    denominator: float
    withheld: str = ""


@dataclass(frozen=True, eq=False)
class PatchMap:
    """effect, low, high: [*axes], 0 where no cell is defined; the interval is drawn over `unit`s, group or example, of
    which there are `n_units`, with `seed`. remaining, remaining_low, remaining_high: the same of what is left to the
    other run, 0 where there is none. Arrays are read-only."""

    cells: Cells
    effect: Numbers
    low: Numbers
    high: Numbers
    remaining: Numbers
    remaining_low: Numbers
    remaining_high: Numbers
    unit: str
    n_units: int
    seed: int
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in _DRAWN:
            array = getattr(self, name)
            if array.shape != self.shape or not np.isfinite(array).all():
                raise MapFileError(f"{name} is not {self.shape} finite numbers")
            array.setflags(write=False)

    def __repr__(self) -> str:
        """One line, around that of `cells`."""
        made = self.provenance
        found = "" if made is None else f"{made.task.name} on {made.model.reference}, "
        return f"PatchMap({found}{self.cells!r}, intervals over {self.n_units} {self.unit}s)"

    @classmethod
    def of(cls, cells: Cells, *, seed: int, provenance: Provenance | None = None) -> PatchMap:
        """Means and intervals of what was measured. seed: of the bootstrap."""
        n_axes, defined = cells.per_example.ndim, cells.defined[None, ..., None]
        differences = cells.per_example - _spread(cells.base_metric, n_axes)
        differences *= defined
        effect, drawn = differences.mean(-1), mean_intervals(differences, cells.groups, seed)
        np.subtract(_spread(cells.other_metric, n_axes), cells.per_example, out=differences)
        differences *= defined & cells.has_other_run
        remaining, left = differences.mean(-1), mean_intervals(differences, cells.groups, seed)
        return cls(
            cells,
            effect=effect,
            low=drawn.low,
            high=drawn.high,
            remaining=remaining,
            remaining_low=left.low,
            remaining_high=left.high,
            unit=drawn.unit,
            n_units=drawn.n_units,
            seed=seed,
            provenance=provenance,
        )

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.cells.axes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis.labels) for axis in self.axes)

    def metric_index(self, metric: str) -> int:
        """Raises KeyError for a metric that was not measured."""
        try:
            return self.cells.metrics.index(metric)
        except ValueError:
            raise KeyError(f"no metric {metric!r} in this map; it has: {', '.join(self.cells.metrics)}") from None

    def total(self, metric: str) -> Total | None:
        """The whole way from the base run to the other one; None where there is no other. Raises KeyError."""
        i, cells = self.metric_index(metric), self.cells
        if not cells.has_other_run:
            return None
        difference = cells.other_metric[i] - cells.base_metric[i]
        drawn = mean_interval(difference, cells.groups, self.seed)
        return Total(float(difference.mean()), drawn.low, drawn.high)

    def normalised(self, metric: str) -> Normalised:
        """Effects as shares of the way from the base run to the other one.

        Withheld where there is no other run; where the difference of the two may have either sign (its 95 % bootstrap
        interval contains zero) or is rounding; and for a single prompt, of which no interval can be drawn. Raises
        KeyError.
        """
        i = self.metric_index(metric)
        denominator = float((self.cells.other_metric[i] - self.cells.base_metric[i]).mean())
        if why := self._why_withheld(i, denominator):
            return Normalised(None, None, None, denominator, why)
        ends = np.sort(np.stack((self.low[i], self.high[i])) / denominator, axis=0)
        return Normalised(self.effect[i] / denominator, ends[0], ends[1], denominator)

    def _why_withheld(self, i: int, denominator: float) -> str:
        cells = self.cells
        if not cells.has_other_run:
            return NO_OTHER_RUN
        if self.n_units < 2:
            return "one prompt does not tell how sure its difference of clean and corrupt run is: take more"
        if not can_divide_by(cells.other_metric[i], cells.base_metric[i], cells.groups, self.seed):
            name = cells.metrics[i]
            return f"clean and corrupt run differ by {denominator:.3g} in mean {name}: too little to divide by"
        return ""

    @property
    def too_few(self) -> str:
        """Why no cell is clear, if there are too few prompts for that."""
        return too_few(len(self.cells.groups))

    @property
    def clear(self) -> Flags:
        """[*axes], true at the cells whose interval leaves 0 out and whose effect is above the rounding of the metric:
        1e-6 of the largest value seen. None of them where there are `too_few` prompts."""
        cells = self.cells
        if self.too_few:
            return np.zeros(self.shape, dtype=bool)
        seen = (cells.per_example, cells.clean, cells.corrupt)
        largest = np.max([[max(-array.min(), array.max()) for array in of] for of in zip(*seen, strict=True)], 1)
        is_rounding = np.abs(self.effect) <= ROUNDING * largest.reshape(-1, *(1,) * (self.effect.ndim - 1))
        clear: Flags = cells.defined & ~is_rounding & ((self.low > 0) | (self.high < 0))
        return clear

    def _repr_svg_(self) -> str:
        """The heat map that a notebook shows."""
        from acdc.drawing import draw_map

        return draw_map(self)

    # -- tables --------------------------------------------------------------------------------------------------------

    def strongest(self, n: int) -> list[dict[str, str | float | None]]:
        """The `n` defined cells with the largest |effect|, each as `columns` name it."""
        effect = self.columns.index("effect")
        largest = heapq.nlargest(n, self.rows(), key=lambda row: abs(float(row[effect] or 0)))
        return [dict(zip(self.columns, row, strict=True)) for row in largest]

    def rows(self) -> Iterator[tuple[str | float | None, ...]]:
        """One row per metric and defined cell, in the order of `columns`; None where normalising is withheld, and where
        there is no other run to compare with."""
        left = (self.remaining, self.remaining_low, self.remaining_high)
        for i, metric in enumerate(self.cells.metrics):
            share = self.normalised(metric)
            for cell in np.ndindex(*self.shape[1:]):
                if self.cells.defined[cell]:
                    labels = [axis.labels[k] for axis, k in zip(self.axes[1:], cell, strict=True)]
                    raw = (float(array[(i, *cell)]) for array in (self.effect, self.low, self.high))
                    divided = (None if a is None else float(a[cell]) for a in (share.effect, share.low, share.high))
                    remaining = (float(a[(i, *cell)]) if self.cells.has_other_run else None for a in left)
                    yield (metric, *labels, *raw, *divided, *remaining)

    @property
    def columns(self) -> tuple[str, ...]:
        names = (axis.name for axis in self.axes)
        return (*names, *_DRAWN[:3], "normalised", "normalised_low", "normalised_high", *_DRAWN[3:])

    def to_dataframe(self) -> Any:
        """All defined cells as a pandas DataFrame."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_dataframe needs pandas: pip install 'acdc-service[notebook]'") from None
        return pandas.DataFrame(list(self.rows()), columns=list(self.columns))

    def to_csv(self) -> str:
        """The same as CSV; numbers read back to the bit, what is withheld is empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([repr(v) if isinstance(v, float) else v for v in row] for row in self.rows())
        return text.getvalue()

    # -- the file ------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The file's bytes: the same map gives the same bytes."""
        cells = self.cells
        header = {
            "format": FORMAT,
            "kind": cells.kind,
            "axes": [asdict(axis) for axis in cells.axes],
            "base": cells.base,
            "groups": cells.groups,
            "parameters": cells.parameters,
            "facts": cells.facts,
            "has_other_run": cells.has_other_run,
            "unit": self.unit,
            "n_units": self.n_units,
            "seed": self.seed,
            "provenance": self.provenance and asdict(self.provenance),
        }
        measured = {name: getattr(cells, name) for name in _MEASURED}
        return pack(header, {**measured, **{name: getattr(self, name) for name in _DRAWN}})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "map") -> PatchMap:
        """Raises MapFileError for a file that is damaged, foreign, or of a version that this code does not know."""
        wanted = (*_MEASURED, *_DRAWN)
        header, arrays = unpack(data, name, what="map", file_format=FORMAT, arrays=wanted, error=MapFileError)
        for key, array in arrays.items():
            if array.dtype != (np.bool_ if key == "defined" else np.float64):
                raise MapFileError(f"{name}: {key} is {array.dtype}; a map holds float64, and true or false")
        try:
            cells = Cells(
                kind=str(header["kind"]),
                axes=tuple(Axis(str(a["name"]), tuple(map(str, a["labels"]))) for a in header["axes"]),
                base=header["base"],
                groups=tuple(header["groups"]),
                parameters=dict(header["parameters"]),
                facts=dict(header["facts"]),
                has_other_run=bool(header["has_other_run"]),
                **{key: arrays[key] for key in _MEASURED},
            )
            provenance = header["provenance"] and Provenance.from_dict(header["provenance"])
            unit, n_units, seed = str(header["unit"]), int(header["n_units"]), int(header["seed"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MapFileError(f"{name}: the header does not describe a map ({error})") from None
        means = {key: arrays[key] for key in _DRAWN}
        return cls(cells, **means, unit=unit, n_units=n_units, seed=seed, provenance=provenance)

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> PatchMap:
        """Raises MapFileError; a file that is not there is one too."""
        return cls.from_bytes(read_file(path, MapFileError), path.name)


def too_few(n_prompts: int) -> str:
    """Why intervals over so many prompts tell no effect from chance; empty where they do."""
    if n_prompts >= MIN_UNITS:
        return ""
    return (
        f"intervals over fewer than {MIN_UNITS} prompts tell no effect from chance, and here are {n_prompts}: take more"
    )


def measured_axis(metrics: Sequence[str]) -> Axis:
    """The first axis of every map."""
    return Axis(METRIC, tuple(metrics))


def _spread(values: Numbers, ndim: int) -> Numbers:
    """[metric, example] -> [metric, 1, ..., example]"""
    return values.reshape(values.shape[0], *(1,) * (ndim - 2), values.shape[-1])
