"""Circuits and patching maps in a notebook: a model and a tokenizer that are loaded already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from acdc.circuit import Circuit
from acdc.errors import SpecError
from acdc.models.loading import describe_loaded
from acdc.patch_map import PatchMap
from acdc.pipeline import run_on
from acdc.progress import Progress, Quiet
from acdc.result import Result
from acdc.spec import parse_job


def discover(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Mapping[str, Any]] | None = None,
    *,
    progress: Progress | None = None,
    **spec: Any,
) -> Circuit:
    """Find a circuit of a loaded Hugging Face model, which is left exactly as it was found.

    pairs: custom prompts, as in a spec's `task.pairs`; without them the spec's task is used (`task="ioi"` by default).
    spec: every other field of a discover job: task, method, metric, ablation, evaluation, selection, compute, ...
    Returns the circuit with its report; in a notebook it shows as a picture, `.to_dataframe()` lists its edges. A
    search over several thresholds returns the ranking over all of them.
    Raises SpecError with every fault, and whatever the engine raises.
    """
    found = _run("discover", model, tokenizer, pairs, progress, spec).circuit
    assert found is not None
    return found


def patch(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Mapping[str, Any]] | None = None,
    *,
    progress: Progress | None = None,
    **spec: Any,
) -> PatchMap:
    """Make a patching map of a loaded Hugging Face model, which is left exactly as it was found.

    pairs: custom prompts, as in a spec's `task.pairs`; without them the spec's task is used (`task="ioi"` by default).
    spec: every other field of a patch job: task, map, metric, compute, ... `map="activations"` by default.
    Returns the map; in a notebook it shows as a heat map, `.to_dataframe()` lists its cells.
    Raises SpecError with every fault, and whatever the engine raises.
    """
    found = _run("patch", model, tokenizer, pairs, progress, spec).patch_map
    assert found is not None
    return found


def _run(
    kind: str,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Mapping[str, Any]] | None,
    progress: Progress | None,
    spec: Mapping[str, Any],
) -> Result:
    """The last result of a job."""
    loaded = describe_loaded(model, tokenizer)
    data: dict[str, Any] = {**spec, "kind": kind, "model": loaded.card.reference}
    if pairs is not None:
        task = data.get("task", {})
        if not isinstance(task, Mapping):
            raise SpecError(f"give either pairs or task={task!r}; with pairs, `task` may hold prompts, seed, ...")
        data["task"] = {**task, "name": "custom", "pairs": list(pairs)}
    return run_on(loaded, parse_job(data, is_request=True), progress or Quiet())[-1]
