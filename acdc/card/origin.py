"""Where a circuit and its numbers come from: the circuit that it was made of, the choices, the model, the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from acdc import numerals
from acdc.card.parts import FACTS, Section, Table, in_words
from acdc.circuit import Choices, Circuit, ModelCard, Provenance, Run, TaskCard

# What each field is called, and how its value is written where that differs from `in_words`.
CHOICES = {
    "metric": "metric",
    "objective": "searched on",
    "ablation": "ablation",
    "method": "method",
    "parameters": "its parameters",
    "granularity": "granularity",
    "positions": "positions",
    "direction": "direction",
}
MODEL = {
    "title": "model",
    "reference": "reference",
    "architecture": "architecture",
    "n_parameters": "parameters",
    "quantisation": "quantisation",
    "tuning": "tuning",
    "parity": "parity: largest difference to the Hugging Face logits, of their range",
    "fingerprint": "sha256 of configuration and weights",
    "tokenizer_sha256": "sha256 of the tokenizer",
}
PROMPTS = {
    "name": "task",
    "corruption": "corruption",
    "n_search": "prompts searched",
    "n_held_out": "prompts held out",
    "n_dropped": "prompts dropped",
    "seed": "seed of the prompts",
    "groups_search": "groups searched",
    "groups_held_out": "groups held out",
    "roles": "position roles",
    "sha256": "sha256 of the prompts",
}
RUN = {
    "wall_time_s": "time taken",
    "peak_memory_bytes": "most memory held",
    "passes": "passes over the searched prompts",
    "facts": "the search says",
    "notes": "notes",
    "seed": "seed",
    "device": "device",
    "threads": "threads",
    "dtype": "number type",
    "code_version": "version of acdc",
    "engine_version": "version of its engine",
    "torch_version": "version of torch",
    "transformers_version": "version of transformers",
}
_ABSENT = {"quantisation": "not quantised", "tuning": "not tuned", "parity": "not measured"}
_NOT_SAID: tuple[Any, ...] = (None, (), {}, "")
_WRITTEN: Mapping[str, Callable[[Any], str]] = {
    "wall_time_s": numerals.duration,
    "peak_memory_bytes": numerals.memory,
    "seed": str,
}


def title_of(provenance: Provenance) -> str:
    """As its picture is titled."""
    return f"{provenance.task.name} circuit of {provenance.model.title}"


def origin_of(circuit: Circuit, derived_from: str | None = None) -> str | None:
    """Which circuit it was made of, and how; None where a search found it, or a hand wrote it. derived_from: the id
    that a store knows."""
    spec = circuit.provenance.run.spec
    source = spec.get("circuit") if spec.get("kind") == "evaluate" else None
    if derived_from is not None and derived_from != source:
        return f"Derived from circuit {derived_from}."
    if source is None:
        return None
    if circuit.selected.rule != "edited":
        return f"Cut anew from the scores of circuit {source}."
    return f"Circuit {source}, edited: {changes_of(spec['edit'])}."


def changes_of(edit: Mapping[str, Any]) -> str:
    """`removed mlp0 and 0.1->logits; added 9.6`, from the edit of a spec as JSON."""
    said = []
    for verb, past in (("remove", "removed"), ("add", "added")):
        names = [*edit.get(f"{verb}_nodes", ()), *edit.get(f"{verb}_edges", ())]
        said += [f"{past} {numerals.listed(names)}"] if names else []
    return "; ".join(said)


def choices_sentence(provenance: Provenance, rule: str) -> str:
    """What the numbers hold for, in one line."""
    made, task = provenance.choices, provenance.task
    return (
        f"{task.name} on {provenance.model.title}; {made.granularity}; positions {made.positions}; {made.direction}; "
        f"ablation {made.ablation}; metric {made.metric}; found by {made.method} on {made.objective}; chosen by rule "
        f"{rule}; {numerals.count(task.n_search, 'prompt')} searched, {task.n_held_out:,} held out, corruption "
        f"{task.corruption}."
    )


def provenance_tables(provenance: Provenance) -> list[Section]:
    """Choices, model, prompts and run, field by field; what a field does not say is left out."""
    parts: tuple[tuple[str, Choices | ModelCard | TaskCard | Run, Mapping[str, str]], ...] = (
        ("Choices", provenance.choices, CHOICES),
        ("Model", provenance.model, MODEL),
        ("Prompts", provenance.task, PROMPTS),
        ("Run", provenance.run, RUN),
    )
    return [Section(title, table=Table(FACTS, tuple(_facts(part, names)))) for title, part, names in parts]


def _facts(part: Choices | ModelCard | TaskCard | Run, names: Mapping[str, str]) -> list[tuple[str, str]]:
    facts = ((name, field, _value(part, field)) for field, name in names.items())
    said = ((name, field, _ABSENT.get(field) if value is None else value) for name, field, value in facts)
    return [(name, _WRITTEN.get(field, in_words)(value)) for name, field, value in said if value not in _NOT_SAID]


def _value(part: Choices | ModelCard | TaskCard | Run, field: str) -> Any:
    if field == "parameters" and isinstance(part, Choices):
        return part.said
    value = getattr(part, field)
    return {key.replace("_", " "): one for key, one in value.items()} if isinstance(value, Mapping) else value


def conditions_of(spec: Mapping[str, Any]) -> str:
    """What the numbers of a job hold for, from its spec as JSON."""
    task, ablation, positions = spec["task"], spec["ablation"], spec.get("positions", "all")
    over = f" per {ablation['mean_over']}" if ablation["kind"] == "mean" else ""
    corruption = f"corruption {task['corruption']}" if task["corruption"] else "its default corruption"
    return (
        f"ablation {ablation['kind']}{over}; metric {spec['metric']}; task {task['name']} on {spec['model']}, "
        f"{corruption}, prompts of seed {task['seed']}; seed {spec['seed']}"
        f"{'' if positions == 'all' else f'; positions {in_words(positions)}'}"
    )
