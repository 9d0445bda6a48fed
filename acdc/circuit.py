"""A circuit: the score of every edge, the edges kept, where both came from, and how it was judged. Torch-free.

One file holds it all: a safetensors file whose arrays are `scores`, `tested`, `kept` and, where stability was measured,
`inclusion`, and whose header carries the rest as JSON. What is loaded equals what was saved to the bit; nothing is ever
pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from acdc.container import pack, read_file, unpack
from acdc.errors import CircuitFileError, GraphMismatch
from acdc.graph import BoolMatrix, Edge, Graph, GraphShape

FORMAT = "acdc-circuit/1"
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelCard:
    """Which weights, exactly. fingerprint: sha256 of configuration and weights. parity: largest |logit difference| to
    the Hugging Face forward, relative to the logits' range, clean and corrupt."""

    reference: str
    title: str
    architecture: str
    fingerprint: str
    tokenizer_sha256: str
    n_parameters: int
    quantisation: str | None = None
    tuning: str | None = None
    parity: float | None = None


@dataclass(frozen=True)
class TaskCard:
    """Which prompts, exactly."""

    name: str
    corruption: str
    sha256: str
    n_search: int
    n_held_out: int
    n_dropped: int
    seed: int
    groups_search: tuple[str, ...]
    groups_held_out: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """What the numbers depend on."""

    metric: str
    objective: str
    ablation: str
    method: str
    parameters: Mapping[str, Any]
    granularity: str = "edges; q, k and v of each head apart; whole MLPs"
    positions: str = "all"
    direction: str = "kept edges carry the clean run, cut edges the ablation value"

    @property
    def said(self) -> dict[str, Any]:
        """The parameters that have a value."""
        return {name: value for name, value in self.parameters.items() if value not in (None, (), [])}


@dataclass(frozen=True)
class Run:
    """How and where it was computed. spec: the job as asked for. passes: forward and backward passes over all searched
    prompts, by kind. facts: what the method says about its own scores, such as the completeness error."""

    code_version: str
    engine_version: int
    torch_version: str
    transformers_version: str
    dtype: str
    device: str
    threads: int
    seed: int
    wall_time_s: float
    peak_memory_bytes: int
    passes: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    model: ModelCard
    task: TaskCard
    choices: Choices
    run: Run

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """The inverse of `asdict`, after JSON."""
        task, run = data["task"], data["run"]
        groups = {name: tuple(task[name]) for name in ("groups_search", "groups_held_out")}
        return cls(
            model=ModelCard(**data["model"]),
            task=TaskCard(**{**task, **groups}),
            choices=Choices(**data["choices"]),
            run=Run(**{**run, "notes": tuple(run["notes"])}),
        )


@dataclass(frozen=True)
class Selected:
    """How `kept` came out of the scores: edges asked for, and those of them on a path embed -> logits.

    rule: signed, absolute, greedy, decisions (the search's own), hypothesis (written by hand) or edited.
    """

    rule: str
    asked_for: int
    connected: int


# -- judgement ---------------------------------------------------------------------------------------------------------


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
        def band(d: Mapping[str, Any]) -> Band:
            return Band(**{**d, "f": tuple(d["f"]), "kl_share": tuple(d["kl_share"])})

        star = data["k_star"]
        return cls(
            behaviour=Behaviour(**{**data["behaviour"], "interval": tuple(data["behaviour"]["interval"])}),
            metric_full=dict(data["metric_full"]),
            metric_empty=dict(data["metric_empty"]),
            kl_empty=dict(data["kl_empty"]),
            points=tuple(map(_point, data["points"])),
            areas=tuple(Areas(**d) for d in data["areas"]),
            bands=tuple(map(band, data["bands"])),
            k_star=star
            and KStar(**{**star, "point": _point(star["point"]), "nearest": tuple(map(_point, star["nearest"]))}),
            kept=tuple(map(_point, data["kept"])),
            kept_random=data["kept_random"] and band(data["kept_random"]),
            stability=Stability(**data.get("stability", {})),
        )


def _size_of_k_star(star: KStar) -> str:
    return f"{star.point.connected:,} edges" if star.met else "missed"


def _point(data: Mapping[str, Any]) -> Point:
    return Point(**{**data, "quantiles": tuple(data["quantiles"])})


# -- the circuit -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Circuit:
    """scores: float32 [senders, receivers], 0 where `tested` is false. tested: legal edges that got a score.
    kept: bool [senders, receivers], the circuit. inclusion: float32 [senders, receivers], the share of resampled
    circuits that have an edge, None where stability was not measured. Arrays are read-only."""

    graph: Graph
    scores: Scores
    tested: BoolMatrix
    kept: BoolMatrix
    selected: Selected
    provenance: Provenance
    report: Report | None = None
    inclusion: Scores | None = None

    def __post_init__(self) -> None:
        for name, array in self._arrays().items():
            if array.shape != self.graph.legal.shape:
                raise GraphMismatch(f"{name} is {array.shape}; this graph needs {self.graph.legal.shape}")
            array.setflags(write=False)
        if not np.isfinite(self.scores).all():
            raise CircuitFileError("a score is not a finite number")
        if (self.kept & ~self.graph.legal).any() or (self.tested & ~self.graph.legal).any():
            raise GraphMismatch("an edge is marked that this graph has not")
        if self.inclusion is not None and not ((self.inclusion >= 0) & (self.inclusion <= self.graph.legal)).all():
            raise CircuitFileError("an inclusion probability is not between 0 and 1, or has no edge")

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """What the file holds, in its order."""
        arrays = {"scores": self.scores, "tested": self.tested, "kept": self.kept, "inclusion": self.inclusion}
        return {name: array for name, array in arrays.items() if array is not None}

    def __repr__(self) -> str:
        """One line: the arrays are as large as the graph."""
        made, chosen = self.provenance, self.selected
        found = f"{made.task.name} on {made.model.reference} by {made.choices.method}"
        kept = f"{self.n_edges:,} connected edges of {self.graph.n_edges:,} kept"
        judged = "not evaluated" if self.report is None else self.report.headline
        return f"Circuit({found}: {kept} (rule {chosen.rule}, {chosen.asked_for:,} asked for), {judged})"

    @property
    def n_edges(self) -> int:
        return int(self.kept.sum())

    def edges(self) -> list[Edge]:
        """The kept edges, the largest |score| first; ties in canonical order."""
        senders, receivers = np.nonzero(self.kept)
        order = np.lexsort((senders, receivers, -np.abs(self.scores[senders, receivers])))
        return [Edge(int(senders[i]), int(receivers[i])) for i in order]

    def nodes(self) -> list[str]:
        """Names of the embedding, heads and MLPs that a kept edge leaves, in forward order.

        Not those that one only enters: a key or value input is shared by a group of heads of which some write nothing.
        Under a norm that spans the heads of a layer these count too, as their outputs move their siblings' shares.
        """
        named = {self.graph.senders[s].name for s in np.nonzero(self.kept.any(axis=1))[0]}
        if self.graph.shape.heads_share_norm:
            for r in np.nonzero(self.kept.any(axis=0))[0]:
                named |= set(self.graph.nodes_read_by(int(r)))
        return [sender.name for sender in self.graph.senders if sender.name in named]

    def to_dataframe(self) -> Any:
        """The kept edges as a pandas DataFrame: sender, receiver, score, and inclusion where stability was measured;
        the largest |score| first."""
        try:
            import pandas
        except ImportError:
            raise ImportError("to_dataframe needs pandas: pip install 'acdc-service[notebook]'") from None
        senders, receivers = self.graph.senders, self.graph.receivers
        rows = [
            (senders[e.sender].name, receivers[e.receiver].name, self.scores[e.sender, e.receiver])
            for e in self.edges()
        ]
        frame = pandas.DataFrame(rows, columns=["sender", "receiver", "score"])
        if self.inclusion is not None:
            frame["inclusion"] = [self.inclusion[e.sender, e.receiver] for e in self.edges()]
        return frame

    def _repr_svg_(self) -> str:
        """The picture that a notebook shows."""
        from acdc.drawing import draw_circuit

        return draw_circuit(self)

    def to_bytes(self) -> bytes:
        """The file's bytes: the same circuit gives the same bytes."""
        header = {
            "format": FORMAT,
            "shape": asdict(self.graph.shape),
            "selected": asdict(self.selected),
            "provenance": asdict(self.provenance),
            "report": self.report and self.report.to_dict(),
        }
        return pack(header, self._arrays())

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "circuit") -> Circuit:
        """Raises CircuitFileError for a file that is damaged, foreign, or of a version that this code does not know."""
        header, arrays = unpack(
            data,
            name,
            what="circuit",
            file_format=FORMAT,
            arrays=("scores", "tested", "kept"),
            optional=("inclusion",),
            error=CircuitFileError,
        )
        try:
            shape = GraphShape(**header["shape"])
            _check_arrays(shape, arrays, name)  # before the graph is built: a small file could ask for any memory
            circuit = cls(
                graph=Graph(shape),
                **arrays,
                selected=Selected(**header["selected"]),
                provenance=Provenance.from_dict(header["provenance"]),
                report=header["report"] and Report.from_dict(header["report"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, GraphMismatch) as error:
            raise CircuitFileError(f"{name}: the header does not describe a circuit ({error})") from None
        if circuit.scores[~circuit.tested].any():
            raise CircuitFileError(f"{name}: an edge has a score that was never tested")
        if circuit.selected.connected != circuit.n_edges:
            raise CircuitFileError(
                f"{name}: {circuit.selected.connected} edges are said to be kept, {circuit.n_edges} are"
            )
        return circuit

    def save(self, path: Path) -> None:
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Circuit:
        """Raises CircuitFileError; a file that is not there is one too."""
        return cls.from_bytes(read_file(path, CircuitFileError), path.name)


def _check_arrays(shape: GraphShape, arrays: Mapping[str, npt.NDArray[np.generic]], name: str) -> None:
    """Raises CircuitFileError where the arrays are not of this graph, or of other types than are written."""
    per_layer = shape.n_heads + int(shape.has_mlp), shape.n_heads + 2 * shape.n_kv_heads + int(shape.has_mlp)
    size = 1 + int(shape.split_position) + shape.n_layers * per_layer[0], shape.n_layers * per_layer[1] + 1
    for key, dtype in (("scores", np.float32), ("tested", np.bool_), ("kept", np.bool_), ("inclusion", np.float32)):
        if key not in arrays:
            continue
        if arrays[key].dtype != dtype or arrays[key].shape != size:
            raise CircuitFileError(
                f"{name}: {key} is {arrays[key].dtype} {arrays[key].shape}; its graph needs {np.dtype(dtype)} {size}"
            )
