"""The store: jobs and their states, claims and leases, circuits and their queries, artefacts.

migrate(url)
with Store.open(url) as store:
    submitted = store.jobs.submit(spec, user="ada")
    claim = store.claims.claim("worker-1", "default")
"""

from __future__ import annotations

from acdc.store.artefacts import Artefacts, Findings
from acdc.store.circuits import KEEP, Keep
from acdc.store.claims import LEASE_S, MAX_DEATHS
from acdc.store.jobs import DEFAULT_CLASS
from acdc.store.migration import migrate
from acdc.store.paging import MAX_LIMIT
from acdc.store.reaper import SWEEP_S
from acdc.store.rows import (
    Beat,
    ChallengeRow,
    CheckpointRef,
    CircuitDetail,
    CircuitFilter,
    CircuitRow,
    Claim,
    EdgeRow,
    EvaluationRow,
    EventRow,
    JobError,
    JobFilter,
    JobRow,
    LogRow,
    MapDetail,
    MapFilter,
    MapRow,
    ModelRow,
    NewCircuit,
    NewEvaluation,
    NewMap,
    NewResult,
    NewTable,
    Page,
    Reaped,
    ResultRow,
    Submitted,
)
from acdc.store.states import Move, State
from acdc.store.store import Store

__all__ = [
    "DEFAULT_CLASS",
    "KEEP",
    "LEASE_S",
    "MAX_DEATHS",
    "MAX_LIMIT",
    "SWEEP_S",
    "Artefacts",
    "Beat",
    "ChallengeRow",
    "CheckpointRef",
    "CircuitDetail",
    "CircuitFilter",
    "CircuitRow",
    "Claim",
    "EdgeRow",
    "EvaluationRow",
    "EventRow",
    "Findings",
    "JobError",
    "JobFilter",
    "JobRow",
    "Keep",
    "LogRow",
    "MapDetail",
    "MapFilter",
    "MapRow",
    "ModelRow",
    "Move",
    "NewCircuit",
    "NewEvaluation",
    "NewMap",
    "NewResult",
    "NewTable",
    "Page",
    "Reaped",
    "ResultRow",
    "State",
    "Store",
    "Submitted",
    "migrate",
]
