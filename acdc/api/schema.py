"""What the framework cannot know about our OpenAPI file: bodies that we parse ourselves, and the one error shape."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from acdc.api.bodies import CIRCUIT_FILE, JSON
from acdc.api.circuits import Labels
from acdc.api.problems import MEDIA_TYPE, Problem
from acdc.spec import KINDS, ChallengeSpec, EvaluateSpec, Hypothesis, TrySpec

_REF = "#/components/schemas/{model}"


def _ref(model: type) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


_BODIES: dict[str, dict[str, Any]] = {  # by operation id: the schema of each media type
    "post_job": {JSON: {"anyOf": [_ref(kind) for kind in KINDS.values()]}},
    "post_plan": {JSON: {"anyOf": [_ref(kind) for kind in KINDS.values()]}},
    "post_circuit": {
        CIRCUIT_FILE: {"type": "string", "format": "binary"},
        JSON: {"anyOf": [_ref(Hypothesis), _ref(EvaluateSpec)]},
    },
    "patch_circuit": {JSON: _ref(Labels)},
    "evaluate_circuit": {JSON: _ref(EvaluateSpec)},
    "challenge_circuit": {JSON: _ref(ChallengeSpec)},
    "try_circuit": {JSON: _ref(TrySpec)},
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
