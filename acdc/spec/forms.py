"""How values are written: frozen models, names, one word for a mapping, one value for a list; their JSON schemas."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

MetricName = Literal["logit_diff", "prob_diff", "kl_divergence", "answer_logprob", "accuracy"]
COMPARES_WITH_WRONG = frozenset({"logit_diff", "prob_diff"})  # metrics that need a wrong answer of every prompt
Rule = Literal["signed", "absolute"]

NonEmpty = Annotated[str, Field(min_length=1, max_length=200)]
# Fields that may be written as one word.
WORD_OF = {"task": "name", "method": "name", "map": "name", "ablation": "kind", "evaluation": "extent"}


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")


def written_out(key: str, value: object) -> object:
    """`ioi` as `{"name": "ioi"}`, for the fields that may be written as one word."""
    return {WORD_OF[key]: value} if key in WORD_OF and isinstance(value, str) else value


def in_a_word(key: str, written: Any) -> BeforeValidator:
    """Of a field that may be written as one word. written: the type of both forms, for its JSON schema."""
    return BeforeValidator(functools.partial(written_out, key), json_schema_input_type=written)


def one_of(names: Iterable[str]) -> dict[str, Any]:
    """The JSON schema of a name that a validator of its own looks up, to guess what a mistyped one meant."""
    return {"type": "string", "enum": list(names)}


def with_name(schema: dict[str, Any]) -> None:
    """Of several models only the name tells which one is meant, so there it has no default."""
    schema["required"] = ["name", *schema.get("required", [])]


def nameless(model: type[BaseModel]) -> Any:
    """The type, for a JSON schema, of a model's fields without its name: the default model is meant."""
    schema = model.model_json_schema()
    fields = {name: field for name, field in schema["properties"].items() if name != "name"}
    return Annotated[Any, WithJsonSchema({"type": "object", "properties": fields, "additionalProperties": False})]


def spell_infinity(value: Any) -> Any:
    """JSON has no infinity: a spec's infinite thresholds travel and are stored as the words that a spec also reads."""
    match value:
        case float() if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        case Mapping():
            return {key: spell_infinity(item) for key, item in value.items()}
        case list() | tuple():
            return [spell_infinity(item) for item in value]
        case _:
            return value


def as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value
