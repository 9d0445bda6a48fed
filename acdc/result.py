"""One result of a job, as the engine hands it over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acdc.circuit import Circuit
from acdc.patch_map import PatchMap


@dataclass(frozen=True)
class Result:
    """key: unique within the job ("circuit", "threshold=0.01", "map", "try", "challenge"). data: tables for people."""

    key: str
    circuit: Circuit | None = None
    patch_map: PatchMap | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
