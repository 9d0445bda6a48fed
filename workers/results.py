"""From an engine's result files to rows: upload the artefact first, then name it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acdc.circuit import Circuit
from acdc.patch_map import PatchMap
from acdc.store import Artefacts, NewCircuit, NewEvaluation, NewMap, NewResult, NewTable
from workers.wire import Found


def to_store(found: Found, spec: Mapping[str, Any], source: Circuit | None, artefacts: Artefacts) -> NewResult:
    """The row of one result, its circuit or map uploaded. source: the stored circuit that the job spoke of.

    A stored circuit that was judged again and not changed is an evaluation of that one; all else is a circuit of its
    own. Raises StorageError.
    """
    data, circuit_id = json.loads(Path(found.data).read_text()), spec.get("circuit")
    if found.map is not None:
        file = Path(found.map)
        return NewMap(found.key, PatchMap.load(file), artefacts.put(file.read_bytes()), data)
    if found.circuit is None:
        return NewTable(found.key, data, circuit_id=circuit_id if spec.get("kind") == "challenge" else None)
    circuit = Circuit.load(Path(found.circuit))
    is_judged_again = spec.get("kind") == "evaluate" and circuit.report is not None
    if source is not None and circuit_id is not None and is_judged_again and _is_same(circuit, source):
        assert circuit.report is not None
        return NewEvaluation(found.key, circuit_id, circuit.report.to_dict(), data)
    digest = artefacts.put(Path(found.circuit).read_bytes())
    return NewCircuit(found.key, circuit, digest, derived_from=circuit_id, data=data)


def _is_same(circuit: Circuit, source: Circuit) -> bool:
    return circuit.graph == source.graph and all(
        np.array_equal(getattr(circuit, name), getattr(source, name)) for name in ("scores", "tested", "kept")
    )
