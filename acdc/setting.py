"""A model with a task's prompts on it, ready to be searched and measured."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from acdc.circuit import ModelCard
from acdc.errors import Fault, TaskError
from acdc.evaluation.measuring import Split
from acdc.evaluation.outcomes import Outcomes
from acdc.graph import END, OTHER, BoolMatrix
from acdc.metrics import METRICS, chance_level
from acdc.models.architectures import wrap
from acdc.models.loading import Loaded
from acdc.models.parity import Parity, check_parity, probe_tokens
from acdc.models.transformer import Transformer
from acdc.patching.ablation import Ablation, Resample, ablation_of
from acdc.patching.batches import Batch, bucket_pairs, make_batches
from acdc.patching.circuits import Prompts, measure, measure_corrupt, prepare, require_memory
from acdc.patching.masked import run_masked
from acdc.progress import Progress
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import Pair, PromptSet, common_roles


@dataclass(frozen=True)
class PreparedSplit:
    """The prompts of one split on a model."""

    name: str
    pairs: Sequence[Pair]
    prompts: Sequence[Prompts]
    memory_bytes: int

    def split(self, t: Transformer, metric: str) -> Split:
        """What the evaluation works on, under one metric."""
        corrupt = measure_corrupt(t, self.prompts, [METRICS[metric]])[metric][0]
        chance = chance_level([p.batch for p in self.prompts], t.vocab_size)
        return Split(self.name, _Measured(t, self, metric), corrupt, [pair.group for pair in self.pairs], chance)


@dataclass(frozen=True)
class _Measured:
    """Circuits in, numbers per example out."""

    t: Transformer
    of: PreparedSplit
    metric: str

    @property
    def n_examples(self) -> int:
        return len(self.of.pairs)

    def __call__(self, masks: Sequence[BoolMatrix]) -> Outcomes:
        stacked = torch.from_numpy(np.stack(masks).astype(np.float32))
        names = list(dict.fromkeys((self.metric, "kl_divergence", "accuracy", "answer_logprob")))
        metrics = [METRICS[name] for name in names]
        values = measure(self.t, self.of.prompts, stacked, metrics, self.of.memory_bytes)
        return Outcomes(
            values[self.metric], -values["kl_divergence"], values["accuracy"] > 0.5, values["answer_logprob"]
        )


@dataclass(frozen=True)
class Setting:
    t: Transformer
    card: ModelCard
    parity: Parity
    prompt_set: PromptSet
    ablation: Ablation
    search: PreparedSplit
    held_out: PreparedSplit

    def held_out_under(self, ablation: str, *, mean_per_role: bool) -> PreparedSplit:
        """The held-out prompts where cut edges carry something else. It holds as much memory again."""
        values = ablation_of(ablation, self.t, _batches(self.search), mean_per_role=mean_per_role)
        return replace(self.held_out, prompts=prepare(self.t, _batches(self.held_out), values))


def _batches(split: PreparedSplit) -> list[Batch]:
    return [prompts.batch for prompts in split.prompts]


def make_setting(
    loaded: Loaded,
    prompt_set: PromptSet,
    *,
    positions: str | Sequence[str],
    split_position: bool,
    ablation: str,
    mean_per_role: bool,
    batch_tokens: int,
    memory_bytes: int,
    progress: Progress,
    other_ablations: bool = False,
) -> Setting:
    """Wrap the model, check its parity, run the prompts clean and ablated. positions: all, roles (those that every
    prompt has), or names of roles. other_ablations: the held-out prompts are to be run under others besides, one at a
    time.

    Raises UnsupportedModel, ParityFailed, BadWeights, TaskError, OutOfMemory.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    progress.phase("parity", 1)
    t = wrap(loaded.model, split_position=split_position)
    longest = max(len(pair.clean) for pair in (*prompt_set.search, *prompt_set.held_out))
    parity = check_parity(t, *probe_tokens(t, longest))
    progress.step(1)
    if positions != "all":
        pairs = (*prompt_set.search, *prompt_set.held_out)
        t = t.split_by(roles_wanted(pairs, bucket_pairs(t, pairs, batch_tokens), positions, progress))
    batches = {
        "search": make_batches(t, prompt_set.search, batch_tokens, memory_bytes),
        "held_out": make_batches(t, prompt_set.held_out, batch_tokens, memory_bytes),
    }
    besides = batches["held_out"] if other_ablations else []
    require_memory(t, [*batches["search"], *batches["held_out"], *besides], memory_of(t.device))
    values = ablation_of(ablation, t, batches["search"], mean_per_role=mean_per_role)
    splits = {}
    progress.phase("clean and ablated runs", len(batches))
    for name, pairs in (("search", prompt_set.search), ("held_out", prompt_set.held_out)):
        prompts = prepare(t, batches[name], values)
        splits[name] = PreparedSplit(name, pairs, prompts, memory_bytes)
        progress.step(len(splits))
    return Setting(t, loaded.card, parity, prompt_set, values, splits["search"], splits["held_out"])


_ONE_ROLE = (
    "a token has one role: a prompt's last is `end`, and where spans overlap the name that sorts last holds; "
    "give spans that do not overlap"
)


def roles_wanted(
    pairs: Sequence[Pair], batches: Sequence[Batch], positions: str | Sequence[str], progress: Progress
) -> list[str]:
    """The roles that edges are to be split by. batches: of all these pairs. positions: names of roles, or `roles` for
    all that can be had, where the log tells of those that cannot.

    Raises TaskError naming the roles that not every prompt has, and those that keep no token in some prompt.
    """
    common = common_roles(pairs)
    hidden = _hidden_roles(batches, common)
    if positions != "roles":
        missing = [role for role in positions if role not in (*common, OTHER)]
        _refuse_roles(missing, {role: hidden[role] for role in positions if role in hidden}, common)
        return list(positions)
    for role in sorted({role for pair in pairs for role in pair.roles} - set(common)):
        progress.log(f"not every prompt has {role}: its tokens are `{OTHER}`")
    for role, why in hidden.items():
        progress.log(f"edges are not split by {role}: {why}; {_ONE_ROLE}")
    return [role for role in common if role not in hidden]


def _hidden_roles(batches: Sequence[Batch], roles: Sequence[str]) -> dict[str, str]:
    """Of these roles, those that keep no token in some prompt, and in how many."""
    named = list(dict.fromkeys((*roles, END, OTHER)))
    numbered = [batch.numbered_roles(named)[batch.first_row] for batch in batches]  # each [example, pos]
    n_prompts = sum(len(rows) for rows in numbered)
    without = {role: sum(int((rows != i).all(1).sum()) for rows in numbered) for i, role in enumerate(named)}
    return {
        role: f"in {n} of {n_prompts} prompts all of its tokens are another role's"
        for role, n in without.items()
        if n and role != OTHER  # which is what is left over, if anything
    }


def _refuse_roles(missing: Sequence[str], hidden: Mapping[str, str], common: Sequence[str]) -> None:
    """Raises TaskError if there are any."""
    said = []
    if missing:
        known = ", ".join(common)
        said.append(f"not every prompt has {_named(missing)} by which edges are to be split; all have: {known}")
    if hidden:
        said.append(f"edges cannot be split by {_named(list(hidden))}: {_ONE_ROLE}")
    faults = [Fault(f"positions.{role}", "not every prompt has this role") for role in missing]
    faults += [Fault(f"positions.{role}", why) for role, why in hidden.items()]
    if faults:
        raise TaskError("; ".join(said), faults)


def _named(roles: Sequence[str]) -> str:
    return f"the role{'s' * (len(roles) != 1)} {', '.join(roles)}"


def top_tokens(
    setting: Setting, tokenizer: Any, prompt: str, corrupt: str | None, masks: Sequence[BoolMatrix], top: int
) -> list[list[dict[str, Any]]]:
    """The `top` likeliest next tokens under each mask, with their probabilities.

    Raises TaskError where clean and corrupt prompt differ in tokens.
    """
    assert not setting.t.graph.shape.roles, "nothing says where roles are in a prompt typed in"
    encoder = Encoder(tokenizer)
    clean_ids = encoder.prompt(prompt)
    corrupt_ids = clean_ids if corrupt is None else encoder.prompt(corrupt)
    if len(clean_ids) != len(corrupt_ids):
        raise TaskError(
            f"the prompt has {len(clean_ids)} tokens and the corrupt one {len(corrupt_ids)}: make them equal"
        )
    t = setting.t
    pair = Pair(tuple(clean_ids), tuple(corrupt_ids), ((0,),), (), "")
    ablation = setting.ablation if corrupt is None else Resample()
    memory = setting.search.memory_bytes
    (p,) = prepare(t, make_batches(t, [pair], len(clean_ids), memory), ablation)
    columns = []
    with torch.no_grad():
        for mask in masks:
            weights = torch.from_numpy(mask[None].astype(np.float32)).to(t.device)
            last = run_masked(t, p.inputs, p.ablation, weights)[0, 0, -1]
            probabilities, ids = t.unembed(last).softmax(-1).topk(min(top, t.vocab_size))
            columns.append(
                [
                    {"token": tokenizer.decode([int(i)]), "id": int(i), "probability": float(q)}
                    for q, i in zip(probabilities, ids, strict=True)
                ]
            )
    return columns


def memory_of(device: torch.device) -> int:
    """All memory of the device, in use or not: what does not fit into it never will."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes(device: torch.device) -> int:
    """The most held: on a GPU since the setting was made, else resident in this process since it began."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
