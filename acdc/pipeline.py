"""From a job spec to its results, in one process: load the model, build the task, search, select, evaluate.

The one place where specs (pydantic) meet the engine (plain arguments).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acdc.circuit import Circuit
from acdc.models.cache import ModelCache
from acdc.progress import Progress
from acdc.spec import JobSpec


@dataclass(frozen=True)
class Result:
    """One result of a job. key: unique within the job ("circuit", "threshold=0.01", "try"). data: tables for people."""

    key: str
    circuit: Circuit | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def run_job(spec: JobSpec, *, models: ModelCache, progress: Progress, source: Circuit | None = None) -> list[Result]:
    """Do what `spec` asks. source: the stored circuit that an evaluate or try job names.

    Raises AcdcError; Cancelled when `progress` says so.
    """
    raise NotImplementedError
