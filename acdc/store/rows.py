"""What the store hands out and takes in: frozen, typed, without a tie to the database. Times are aware, in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from acdc.circuit import Circuit
from acdc.errors import Fault
from acdc.patch_map import PatchMap
from acdc.store.states import State

Row = TypeVar("Row")
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Page(Generic[Row]):
    """One page of a list. `next_cursor` is None on the last page; it means nothing to anyone but the store."""

    items: tuple[Row, ...]
    next_cursor: str | None


# -- jobs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointRef:
    """Where the latest checkpoint lies (its artefact's digest) and which engine can resume from it."""

    digest: str
    step: int
    engine_version: int


@dataclass(frozen=True)
class JobError:
    """Why a job failed. code: invalid_task, out_of_memory, timeout, poison, storage or internal."""

    code: str
    message: str
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class JobRow:
    """A job as it stands.

    attempt: claims so far, drained ones not counted. deaths: of the engine child since the last new checkpoint.
    last_event: number of the newest event, which every change of state or progress raises (so it serves as a version).
    """

    id: str
    kind: str
    state: State
    user: str
    spec: Json
    spec_sha256: str
    name: str | None
    tags: tuple[str, ...]
    notes: str | None
    resource_class: str
    priority: int
    max_runtime_s: float
    max_queue_s: float
    attempt: int
    deaths: int
    retry_of: str | None
    worker_id: str | None
    lease_until: datetime | None
    progress: Json | None
    checkpoint: CheckpointRef | None
    error: JobError | None
    last_event: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class JobFilter:
    """Which jobs to list; what is None or empty does not restrict. tags: all of them must be there."""

    user: str | None = None
    kind: str | None = None
    states: tuple[State, ...] = ()
    tags: tuple[str, ...] = ()
    resource_class: str | None = None


@dataclass(frozen=True)
class Submitted:
    """replayed: the idempotency key was known, and `job` is the one that it made then."""

    job: JobRow
    replayed: bool


@dataclass(frozen=True)
class EventRow:
    """Numbers of a job's events run 1, 2, 3, … without a gap. kind: `state` (data: state, move and what explains it) or
    `progress` (data: as the worker gave it). The event of a terminal state is the last one."""

    number: int
    at: datetime
    kind: str
    data: Json


@dataclass(frozen=True)
class LogRow:
    """A line of a job's log; numbers run 1, 2, 3, … without a gap."""

    number: int
    at: datetime
    line: str


# -- claims ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A worker's right to a job: whoever writes must show its token. `job` is as it was when it was claimed."""

    job: JobRow
    token: str
    lease_s: float


@dataclass(frozen=True)
class Beat:
    """Answer to a heartbeat. cancel: stop, then `finish_cancelled`. lost: the job is not yours any more, drop it."""

    cancel: bool
    lost: bool


@dataclass(frozen=True)
class Reaped:
    """Ids of the jobs that a sweep moved. waiting: it came after a gap, so lost leases were left alone this time."""

    requeued: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    timed_out: tuple[str, ...] = ()
    waiting: bool = False


# -- results -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewCircuit:
    """A result of kind `circuit`. artefact: digest of its file, which is already in the artefact store."""

    key: str
    circuit: Circuit
    artefact: str
    derived_from: str | None = None
    data: Json = field(default_factory=dict)


@dataclass(frozen=True)
class NewEvaluation:
    """A result of kind `evaluation`: another report on a stored circuit."""

    key: str
    circuit_id: str
    report: Json
    data: Json = field(default_factory=dict)


@dataclass(frozen=True)
class NewMap:
    """A result of kind `map`. artefact: digest of its file, which is already in the artefact store."""

    key: str
    patch_map: PatchMap
    artefact: str
    data: Json = field(default_factory=dict)


@dataclass(frozen=True)
class NewTable:
    """A result of kind `table`: anything to read that is neither circuit nor map. circuit_id: that it speaks of."""

    key: str
    data: Json
    circuit_id: str | None = None


NewResult = NewCircuit | NewEvaluation | NewMap | NewTable


@dataclass(frozen=True)
class ResultRow:
    """One result of a job. key: unique within it. kind: circuit, evaluation, map or table.

    circuit_id: the circuit found, evaluated or challenged; None too when it has been deleted since. map_id: the map
    made.
    """

    job_id: str
    key: str
    kind: str
    circuit_id: str | None
    evaluation_id: str | None
    map_id: str | None
    data: Json


# -- circuits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CircuitRow:
    """What a list says of a circuit.

    n_edges: connected ones. fraction: of the edges of the whole graph. f, kl_share: of the circuit itself on held-out
    prompts, None where it was not evaluated. artefact: digest of its file.
    """

    id: str
    user: str
    job_id: str | None
    result_key: str | None
    name: str | None
    tags: tuple[str, ...]
    notes: str | None
    model_reference: str
    model_fingerprint: str
    graph_fingerprint: str
    task: str
    task_sha256: str
    method: str
    metric: str
    ablation: str
    rule: str
    n_edges: int
    n_edges_total: int
    fraction: float
    f: float | None
    kl_share: float | None
    derived_from: str | None
    artefact: str
    created_at: datetime


@dataclass(frozen=True)
class CircuitDetail:
    """A circuit with its report and provenance as JSON (`Report.to_dict`, `asdict(Provenance)`)."""

    row: CircuitRow
    report: Json | None
    provenance: Json


@dataclass(frozen=True)
class CircuitFilter:
    """Which circuits to list; what is None or empty does not restrict. model: a reference or a fingerprint.
    nodes (`9.9`), edges (`5.5->9.6.q`, at any role, or `5.5->9.6.q@S2`) and tags: all of them must be there."""

    user: str | None = None
    job_id: str | None = None
    model: str | None = None
    task: str | None = None
    method: str | None = None
    metric: str | None = None
    nodes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    min_edges: int | None = None
    max_edges: int | None = None


@dataclass(frozen=True)
class EdgeRow:
    """A kept edge. rank: 1 is the largest |score|. score: None where the search gave none."""

    sender: str
    receiver: str
    score: float | None
    rank: int


@dataclass(frozen=True)
class EvaluationRow:
    """An evaluation of a stored circuit by a job of its own. spec: that job's."""

    id: str
    circuit_id: str
    job_id: str
    result_key: str
    report: Json
    spec: Json
    created_at: datetime


@dataclass(frozen=True)
class ChallengeRow:
    """A challenge of a stored circuit. data: `Challenge.to_dict`. core: the circuit of what survived, if any did and is
    still there."""

    job_id: str
    circuit_id: str
    data: Json
    core: str | None
    created_at: datetime


# -- maps --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapRow:
    """What a list says of a patching map.

    kind: one of `MapKind`. base: the run that was changed, clean or corrupt. n_cells: that are defined; n_clear: of
    these, whose interval leaves 0 out. n_examples: prompts measured on. clean, corrupt: mean metric of the two
    unchanged runs. axes: name and labels of each but the metric's. strongest: the cells with the largest |effect|, see
    `PatchMap.strongest`. artefact: digest of its file.
    """

    id: str
    user: str
    job_id: str | None
    result_key: str
    name: str | None
    tags: tuple[str, ...]
    notes: str | None
    kind: str
    model_reference: str
    model_fingerprint: str
    task: str
    task_sha256: str
    metric: str
    base: str
    n_cells: int
    n_clear: int
    n_examples: int
    clean: float
    corrupt: float
    axes: tuple[Json, ...]
    strongest: tuple[Json, ...]
    artefact: str
    created_at: datetime


@dataclass(frozen=True)
class MapDetail:
    """A map with its provenance as JSON (`asdict(Provenance)`)."""

    row: MapRow
    provenance: Json


@dataclass(frozen=True)
class MapFilter:
    """Which maps to list; what is None or empty does not restrict. model: a reference or a fingerprint. tags: all of
    them must be there."""

    user: str | None = None
    job_id: str | None = None
    kind: str | None = None
    model: str | None = None
    task: str | None = None
    metric: str | None = None
    tags: tuple[str, ...] = ()


# -- models ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelRow:
    """A model that this service has met: one row for each reference, so equal weights show as an equal fingerprint."""

    fingerprint: str
    reference: str
    card: Json
    first_seen: datetime
    last_used: datetime
