"""What every result says of its origin: the prompts, the program, the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from acdc.circuit import Run, TaskCard
from acdc.setting import peak_memory_bytes
from acdc.spec import PromptsSpec
from acdc.tasks.prompts import Pair, PromptSet, common_roles
from acdc.version import ENGINE_VERSION, __version__


def record_run(
    spec: PromptsSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    wall_time_s: float,
    passes: Mapping[str, float] | None = None,
    facts: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> Run:
    """How and where it was computed, and what was asked for."""
    import transformers

    return Run(
        code_version=__version__,
        engine_version=ENGINE_VERSION,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        threads=torch.get_num_threads(),
        seed=spec.seed,
        wall_time_s=wall_time_s,
        peak_memory_bytes=peak_memory_bytes(device),
        passes=dict(passes or {}),
        facts=dict(facts or {}),
        notes=tuple(notes),
        spec=json.loads(spec.canonical_json),
    )


def task_card(prompt_set: PromptSet, seed: int) -> TaskCard:
    def groups(pairs: Sequence[Pair]) -> tuple[str, ...]:
        return tuple(sorted({pair.group for pair in pairs}))

    return TaskCard(
        name=prompt_set.task,
        corruption=prompt_set.corruption,
        sha256=prompt_set.sha256,
        n_search=len(prompt_set.search),
        n_held_out=len(prompt_set.held_out),
        n_dropped=len(prompt_set.dropped),
        seed=seed,
        groups_search=groups(prompt_set.search),
        groups_held_out=groups(prompt_set.held_out),
        roles=tuple(common_roles((*prompt_set.search, *prompt_set.held_out))),
    )
