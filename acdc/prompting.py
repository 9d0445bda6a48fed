"""The prompts that a job asks for, made for a tokenizer and checked against its metric."""

from __future__ import annotations

from acdc.errors import TaskError
from acdc.metrics import Metric
from acdc.progress import Progress
from acdc.spec import PatchSpec, PromptsSpec
from acdc.tasks import TASKS
from acdc.tasks.custom import build_custom
from acdc.tasks.prompts import PromptSet, Tokenizer


def make_prompts(tokenizer: Tokenizer, spec: PromptsSpec, metric: Metric, progress: Progress) -> PromptSet:
    """The task's prompts, with a word on every row that was dropped. Raises TaskError."""
    progress.phase("building the task", 1)
    prompt_set = build_prompts(tokenizer, spec)
    for dropped in prompt_set.dropped[:50]:
        progress.log(f"row {dropped.row} dropped: {dropped.reason}")
    without = sum(not pair.wrong for pair in (*prompt_set.search, *prompt_set.held_out))
    if metric.needs_wrong and without:
        of_maps = "answer_probability, " if isinstance(spec, PatchSpec) else ""
        raise TaskError(
            f"metric {metric.name} compares right with wrong answers and {without} prompts have no wrong ones; "
            f"give `wrong`, or use {of_maps}answer_logprob or kl_divergence"
        )
    return prompt_set


def build_prompts(tokenizer: Tokenizer, spec: PromptsSpec) -> PromptSet:
    """The task's prompts for a tokenizer. Raises TaskError."""
    task = spec.task
    n_search, n_held_out = task.sizes
    if task.pairs is not None:
        return build_custom(
            tokenizer,
            [pair.model_dump() for pair in task.pairs],
            n_search=n_search,
            n_held_out=n_held_out,
            corruption=task.corruption or "given",
            seed=task.seed,
            strict=task.strict,
            needs_corrupt=spec.needs_corrupt,
        )
    description = TASKS[task.name]
    return description.build(
        tokenizer,
        n_search=n_search,
        n_held_out=n_held_out,
        corruption=task.corruption or description.corruptions[0],
        seed=task.seed,
    )
