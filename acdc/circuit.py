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
from acdc.numerals import count
from acdc.plain import from_plain
from acdc.report import Report

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
    """Which prompts, exactly. roles: the position roles that all of them have, in the order in which they begin in the
    first; empty in files from before it was noted."""

    name: str
    corruption: str
    sha256: str
    n_search: int
    n_held_out: int
    n_dropped: int
    seed: int
    groups_search: tuple[str, ...]
    groups_held_out: tuple[str, ...]
    roles: tuple[str, ...] = ()


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
        """The parameters that have a value; methods in methods in words, as eap-ig-inputs (steps 10)."""
        return {name: _in_words(value) for name, value in self.parameters.items() if value not in (None, (), [])}


def _in_words(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_in_words(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    said = [f"{name} {own}" for name, own in value.items() if name != "name" and own not in (None, (), [])]
    return f"{value['name']} ({'; '.join(said)})" if said else value["name"]


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

    @property
    def job(self) -> dict[str, Any]:
        """The spec of the job behind it. One made without a job still names model, task and metric."""
        known = {"model": self.model.reference, "task": self.task.name, "metric": self.choices.metric}
        return {**known, **self.run.spec}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """The inverse of `asdict`, after JSON. Raises TypeError or ValueError."""
        return from_plain(cls, data)


@dataclass(frozen=True)
class Selected:
    """How `kept` came out of the scores: edges asked for, and those of them on a path embed -> logits.

    rule: signed, absolute, greedy, decisions (the search's own), hypothesis (written by hand) or edited.
    """

    rule: str
    asked_for: int
    connected: int

    @property
    def emptiness(self) -> str | None:
        """What to know of a circuit without edges; None of any other."""
        if self.connected:
            return None
        asked = (
            f"none of {count(self.asked_for, 'edge')} asked for lies" if self.asked_for else "no edge is left that lies"
        )
        return f"the circuit is empty: {asked} on a path from embed to the logits, so every edge is cut"


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
    def edges_in_words(self) -> str:
        """What its numbers of edges count."""
        return "edges split by role" if self.graph.shape.roles else "edges"

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

        Not those that one only enters: a key or value input is shared by a group of heads of which some write nothing,
        and under a norm that spans the heads of a layer a head may count for its siblings' shares alone.
        """
        return [self.graph.senders[s].name for s in np.flatnonzero(self.kept.any(axis=1))]

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
            shape = from_plain(GraphShape, header["shape"])
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
    inputs = shape.n_layers * per_layer[1] * (len(shape.roles) or 1)
    size = 1 + int(shape.split_position) + shape.n_layers * per_layer[0], inputs + 1
    for key, dtype in (("scores", np.float32), ("tested", np.bool_), ("kept", np.bool_), ("inclusion", np.float32)):
        if key not in arrays:
            continue
        if arrays[key].dtype != dtype or arrays[key].shape != size:
            raise CircuitFileError(
                f"{name}: {key} is {arrays[key].dtype} {arrays[key].shape}; its graph needs {np.dtype(dtype)} {size}"
            )
