"""The JSON schemas that are published say what the server takes: clients are written from them."""

from __future__ import annotations

import functools
from typing import Any

import jsonschema
import pytest

from acdc.api.app import build_routes
from acdc.errors import SpecError
from acdc.spec import MAP_SPECS, METHOD_SPECS, parse_job
from acdc.tasks import TASKS

STORED = {"kind": "evaluate", "circuit": "c"}
PAIR = {"clean": "a b", "corrupt": "a c", "answers": " d", "wrong": " e"}


def method(**fields: Any) -> dict[str, Any]:
    return {"method": fields}


def patch(**fields: Any) -> dict[str, Any]:
    return {"kind": "patch", "map": fields}


ACCEPTED: tuple[dict[str, Any], ...] = (
    {},
    *({"task": name} for name in TASKS),
    {"task": {"name": "greater_than"}},
    {"task": {"prompts": 8}},
    {"task": {"name": "custom", "pairs": [PAIR]}},
    {"task": {"name": "custom", "pairs": [{**PAIR, "answers": [" d", " e"], "wrong": " f", "spans": {"v": [0, 1]}}]}},
    *({"method": name} for name in METHOD_SPECS),
    *(method(name=name) for name in METHOD_SPECS),
    method(),
    method(steps=5),
    method(objective="logit_diff"),
    method(objective=["logit_diff", "kl_divergence"]),
    method(name="eap", objective="logit_diff"),
    method(name="edge-pruning", edges=1),
    method(name="edge-pruning", edges=100.0),
    method(name="edge-pruning", edges=0.5),
    method(name="acdc", thresholds=0.05),
    method(name="acdc", thresholds=1),
    method(name="acdc", thresholds="Infinity"),
    method(name="acdc", thresholds="-Infinity"),
    method(name="acdc", thresholds=["Infinity"]),
    method(name="acdc", thresholds=[0.1, 1]),
    method(name="acdc", edges=100),
    method(name="acdc", edges=None),
    method(name="ensemble", methods=["eap"]),
    method(name="ensemble", methods=["eap", {"name": "mask-ig", "steps": 3}]),
    *({"ablation": kind} for kind in ("resample", "zero", "mean")),
    {"ablation": {"kind": "mean", "mean_over": "all"}},
    {"evaluation": "full"},
    {"evaluation": {"extent": "full", "grid": [0.1, 1]}},
    {"positions": "all"},
    {"positions": "roles"},
    {"positions": "IO"},
    {"positions": "IO,end"},
    {"positions": ["IO", "end"]},
    {"selection": {"size": 1}},
    {"selection": {"size": 100.0}},
    {"selection": {"size": 0.02}},
    {"selection": {"size": 1.0}},
    {"selection": {"size": "all"}},
    {"selection": {"size": None}},
    {"selection": {"faithfulness": 0.9}},
    STORED,
    {"kind": "evaluate", "hypothesis": {"nodes": ["9.9"]}},
    {"kind": "try", "circuit": "c", "prompt": "p"},
    {"kind": "challenge", "circuit": "c"},
    {"kind": "challenge", "circuit": "c", "vary": "metric,seed"},
    {"kind": "challenge", "circuit": "c", "vary": ["metric"]},
    {"kind": "patch"},
    {"kind": "patch", "task": "ioi"},
    *({"kind": "patch", "map": name} for name in MAP_SPECS),
    patch(state="mlp"),
    patch(name="activations", roles="IO"),
    patch(name="activations", roles=["IO", "end"]),
    patch(name="paths", senders="heads"),
    patch(name="paths", senders="9.6"),
    patch(name="paths", senders=["9.6", ["mlp3", "embed"], {"label": "one", "nodes": ["9.6"]}, "heads"]),
    patch(name="causes", sigma=None, restored=[{"state": "residual_after", "severed": "mlp"}]),
    patch(name="causes", restored=[{"state": "residual_after", "severed": ["mlp", "attention"]}]),
    patch(name="causes", restored=[{"state": "residual_after", "severed": None}]),
    patch(name="knockout", blocked=[["end", "all"]], heads=["9.6"]),
)
REFUSED: tuple[dict[str, Any], ...] = (
    {"taks": "ioi"},
    {"task": "IOI"},
    {"task": "custom"},
    {"task": {"name": "IOI"}},
    {"task": 3},
    {"task": {"prompts": 0}},
    {"task": {"name": "custom", "pairs": [{**PAIR, "answers": []}]}},
    {"method": "epa"},
    {"method": ["eap"]},
    method(name="epa"),
    method(stepz=5),
    method(thresholds=[0.1]),
    method(name="eap", steps=5),
    method(name="eap", objective="beauty"),
    method(name="eap", objective=[]),
    *(
        method(name="edge-pruning", edges=edges)
        for edges in (0, -1, 2.7, 0.0, True, "100", "all", "Infinity", None, [1])
    ),
    *(method(name="acdc", edges=edges) for edges in (0, 0.5, 2.7, True, "100", "all")),
    method(name="acdc", thresholds="much"),
    method(name="acdc", thresholds=["much"]),
    method(name="ensemble", methods="eap"),
    method(name="ensemble", methods=[]),
    method(name="ensemble", methods=["acdc"]),
    method(name="ensemble", methods=[{"steps": 3}]),
    {"ablation": "none"},
    {"evaluation": "all"},
    *({"positions": positions} for positions in ("", " , ", [], [""], ["roles"], ["S2", "all"], 5, None)),
    *({"selection": {"size": size}} for size in (0, 2.5, -1, 0.0, 1.5, True, "100", "half", [1])),
    {"selection": {"faithfulness": 0}},
    {"circuit": "c"},
    {"kind": "try", "circuit": "c"},
    {"kind": "challenge"},
    {"kind": "challenge", "circuit": "c", "vary": ["weather"]},
    {"kind": "patch", "map": "paths and more"},
    {"kind": "patch", "method": "eap"},
    patch(stat="mlp"),
    patch(senders="heads"),
    patch(name="activations", roles=[]),
    patch(name="paths", senders=9.6),
    patch(name="paths", senders=[[]]),
    patch(name="causes", restored=[{"state": "residual_after", "severed": "head"}]),
)


@functools.cache
def published() -> dict[str, Any]:
    schema: dict[str, Any] = build_routes().openapi()
    return schema


def meets(body: object, path: str) -> bool:
    """Whether a body is what the OpenAPI file says of a route."""
    schema = published()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    whole = {**schema, "components": published()["components"]}
    return bool(jsonschema.Draft202012Validator(whole).is_valid(body))


def is_taken(spec: dict[str, Any]) -> bool:
    try:
        parse_job(spec, is_request=True)
    except SpecError:
        return False
    return True


@pytest.mark.parametrize("spec", ACCEPTED, ids=str)
def test_what_the_server_takes_meets_its_schema(spec: dict[str, Any]) -> None:
    assert is_taken(spec)
    assert meets(spec, "/v1/jobs")
    assert meets(spec, "/v1/plan")


@pytest.mark.parametrize("spec", REFUSED, ids=str)
def test_what_the_schema_is_not_met_by_the_server_refuses(spec: dict[str, Any]) -> None:
    assert not is_taken(spec)
    assert not meets(spec, "/v1/jobs")


@pytest.mark.parametrize("spec", [one for one in ACCEPTED if isinstance(one.get("method"), dict) and one["method"]])
def test_parameters_meet_the_schema_that_their_method_is_listed_with(spec: dict[str, Any]) -> None:
    named = {"name": "eap-ig-inputs", **spec["method"]}
    jsonschema.validate(named, METHOD_SPECS[named["name"]].model_json_schema())


@pytest.mark.parametrize(
    ("path", "body", "is_met"),
    [
        ("/v1/circuits", {"model": "gemma3-270m-q4", "task": "ioi", "nodes": ["9.9"], "edges": ["embed->mlp0"]}, True),
        ("/v1/circuits", {"task": "ioi", "node": ["9.9"]}, False),
        ("/v1/circuits/{circuit_id}/evaluate", {"metric": "prob_diff", "selection": {"size": 5}}, True),
        ("/v1/circuits/{circuit_id}/evaluate", {"method": "eap"}, False),
        ("/v1/circuits/{circuit_id}/challenge", {}, True),
        ("/v1/circuits/{circuit_id}/try", {"prompt": "p"}, True),
        ("/v1/circuits/{circuit_id}/try", {}, False),
    ],
)
def test_jobs_on_a_circuit_need_not_name_the_circuit_of_their_path(path: str, body: object, is_met: bool) -> None:
    assert meets(body, path) == is_met
