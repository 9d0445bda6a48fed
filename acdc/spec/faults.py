"""What validation found, in our words: a name that is wrong is answered with what it may be, and what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from acdc.errors import Fault
from acdc.spec.contradictions import Contradictions
from acdc.spec.forms import Frozen
from acdc.spec.maps import MAP_SPECS, NodeSet
from acdc.spec.methods import METHOD_SPECS
from acdc.suggestions import did_you_mean

# What pydantic puts into the place of a fault, and no user wrote.
_TAGGED: dict[str, type[Frozen]] = {**METHOD_SPECS, **MAP_SPECS, "NodeSet": NodeSet}


def faults_of(failure: ValidationError, checked: type[BaseModel]) -> list[Fault]:
    """pydantic's findings as our faults, in its order. checked: the model whose validation failed."""
    faults: list[Fault] = []
    for finding in failure.errors(include_url=False):
        if _is_echo(finding):
            continue
        if isinstance(error := finding.get("ctx", {}).get("error"), Contradictions):
            faults += error.faults
            continue
        where = ".".join(str(part) for part in finding["loc"] if part not in _TAGGED)
        faults.append(Fault(where, _message_of(finding, checked) + _row_of(finding["loc"])))
    return faults


def _row_of(place: Sequence[int | str]) -> str:
    """Which of the user's own prompts it is, as `acdc task check` counts them: from 1."""
    match place:
        case ("task", "pairs", int(index), *_):
            return f" (row {index + 1})"
        case _:
            return ""


def _is_echo(finding: Any) -> bool:
    """A list that is called too short only because items with a fault of their own were not counted."""
    if finding["type"] != "too_short" or not isinstance(finding["input"], list | tuple):
        return False
    return len(finding["input"]) >= int(finding["ctx"]["min_length"])


def _message_of(finding: Any, checked: type[BaseModel]) -> str:
    """In our words where a name is wrong: what it may be is known, and what was meant can be guessed."""
    match finding["type"]:
        case "value_error" | "missing":
            return str(finding["msg"]).removeprefix("Value error, ")
        case "extra_forbidden":
            *parents, field = finding["loc"]
            known = list(dict.fromkeys(name for model in _models_at(checked, parents) for name in model.model_fields))
            return f"there is no field {field!r} here; {_choice(str(field), known)}"
        case "union_tag_invalid":
            word = str(finding["ctx"]["tag"])
            return (
                f"unknown {_what_stands_at(finding['loc'])} {word!r:.80}; {_choice(word, _names_at(finding, checked))}"
            )
        case "union_tag_not_found":
            what, known = _what_stands_at(finding["loc"]), _names_at(finding, checked)
            return f"give the {what} a `name`: nothing else says which one is meant; known: {', '.join(known)}"
        case "model_type" | "model_attributes_type":
            return f"give a mapping of fields, not {finding['input']!r:.80}"
        case "too_short" if not finding["input"]:
            return f"is empty: give at least {finding['ctx']['min_length']}"
        case "tuple_type":
            return f"give a list, not {finding['input']!r:.80}"
        case "literal_error" if isinstance(finding["input"], str):
            known = re.findall(r"'([^']*)'", finding["ctx"]["expected"])
            return f"unknown value {finding['input']!r:.80}; {_choice(finding['input'], known)}"
        case _:
            return f"{finding['msg']}, got {finding['input']!r}"[:200]


def _what_stands_at(place: Sequence[int | str]) -> str:
    """One of `methods` is a method."""
    above, last = ("", *place)[-2:]
    return str(above).removesuffix("s") if isinstance(last, int) else last


def _names_at(finding: Any, checked: type[BaseModel]) -> list[str]:
    """What the models that may stand there are called."""
    tag = str(finding["ctx"]["discriminator"]).strip("'")
    return [model.model_fields[tag].default for model in _models_at(checked, finding["loc"])]


def _choice(word: str, known: Sequence[str]) -> str:
    return f"{did_you_mean(word, known)}known: {', '.join(known)}"


def _models_at(checked: type[BaseModel], path: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that may stand at a place of a spec, which pydantic gives as fields, list indices and union tags."""
    models = [checked]
    for part in path:
        if part in _TAGGED and _TAGGED[str(part)] in models:
            models = [_TAGGED[str(part)]]
        elif fields := [model.model_fields[part] for model in models if part in model.model_fields]:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
