"""From JSON or YAML, already read, to a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from acdc.errors import SpecError
from acdc.spec.faults import faults_of
from acdc.spec.forms import WORD_OF, written_out
from acdc.spec.jobs import KINDS, REQUEST, JobSpec
from acdc.suggestions import did_you_mean

_OF_THE_CIRCUIT = (
    *("model", "task", "positions", "split_position", "metric"),
    *("ablation", "evaluation", "compute", "seed"),
)


def with_defaults_of(circuit_spec: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation of a stored circuit asks for: its own fields, else those of the circuit's job.

    Of a field with fields of its own (`task`, `ablation`, …) those left out are inherited too, as long as both speak of
    the same task or the same kind of ablation.
    """
    merged = dict(data)
    for key in _OF_THE_CIRCUIT:
        if key in circuit_spec:
            inherited = circuit_spec[key]
            merged[key] = _laid_over(key, inherited, data[key]) if key in data else inherited
    return merged


def _laid_over(key: str, inherited: object, own: object) -> object:
    below, above = written_out(key, inherited), written_out(key, own)
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return own
    word = WORD_OF.get(key) if key != "evaluation" else None  # a fuller one is still of the same thing
    if word in above and above[word] != below.get(word):
        return own  # another task: its prompts have nothing to do with those
    return {**below, **above}


def parse_job(data: object, *, is_request: bool = False) -> JobSpec:
    """Check a spec, from JSON or YAML already read. Raises SpecError with every fault in it.

    is_request: somebody asks for just this, so the roles that it names must be its task's, and all that it chooses must
    have a use. A challenge makes jobs that put a circuit's roles on another task, and tells of them that they cannot be
    had; and the jobs of stored circuits are read as they were taken.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"a job spec is a mapping, like {{'task': 'ioi'}}; this is {type(data).__name__}")
    kind = data.get("kind", "discover")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise SpecError(f"unknown job kind {kind!r}; {hint}known kinds: {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(dict(data), context=REQUEST if is_request else None)
    except ValidationError as error:
        faults = faults_of(error, KINDS[kind])
        raise SpecError(f"{len(faults)} fault{'s' * (len(faults) != 1)} in the job spec", faults) from None
