"""What the framework cannot know about our OpenAPI file: bodies that we parse ourselves, and the one error shape."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from acdc.api.bodies import CIRCUIT_FILE, JSON
from acdc.api.circuits import Labels
from acdc.api.problems import MEDIA_TYPE, Problem
from acdc.spec import KINDS, ChallengeSpec, EvaluateSpec, Hypothesis, TrySpec

_REF = "#/components/schemas/{model}"


def _ref(model: type) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _job() -> dict[str, Any]:
    """A spec without a kind is a search."""
    kinds = {kind: _ref(model) for kind, model in KINDS.items()}
    return {"anyOf": [kinds.pop("discover"), *({"allOf": [ref], "required": ["kind"]} for ref in kinds.values())]}


def _about_the_circuit(model: type[BaseModel]) -> dict[str, Any]:
    """A job whose circuit the path names."""
    schema = model.model_json_schema(ref_template=_REF)
    del schema["$defs"]  # which are components
    return {**schema, "required": [name for name in schema.get("required", []) if name != "circuit"]}


def _hypothesis() -> dict[str, Any]:
    """A job that evaluates it, with its nodes and edges among the fields."""
    schema = _about_the_circuit(EvaluateSpec)
    return {**schema, "properties": {**schema["properties"], **Hypothesis.model_json_schema()["properties"]}}


_BODIES: dict[str, dict[str, Any]] = {  # by operation id: the schema of each media type
    "post_job": {JSON: _job()},
    "post_plan": {JSON: _job()},
    "post_circuit": {
        CIRCUIT_FILE: {"type": "string", "format": "binary"},
        JSON: _hypothesis(),
    },
    "patch_circuit": {JSON: _ref(Labels)},
    "evaluate_circuit": {JSON: _about_the_circuit(EvaluateSpec)},
    "challenge_circuit": {JSON: _about_the_circuit(ChallengeSpec)},
    "try_circuit": {JSON: _about_the_circuit(TrySpec)},
}


def finish_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the bodies, and say of every operation that its errors are problem documents."""
    models = [(model, "validation") for model in (*KINDS.values(), Hypothesis, Labels, Problem)]
    _, added = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    schema["components"]["schemas"] = dict(sorted({**components, **added["$defs"]}.items()))
    failure = {"description": "a problem document (RFC 9457)", "content": {MEDIA_TYPE: {"schema": _ref(Problem)}}}
    for methods in schema["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = failure
            if body := _BODIES.get(operation["operationId"]):
                content = {media_type: {"schema": described} for media_type, described in body.items()}
                operation["requestBody"] = {"required": True, "content": content}
    return schema
