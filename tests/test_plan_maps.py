"""What a patching map is reckoned to cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_plan_estimate import FACTS, FORWARD, N_PAIRS, PAIRS, SIZE, SPEED, seconds

from acdc.graph import Graph
from acdc.map_cost import CELL, PATH_CELL, RUNS, cells_of_map, forwards_of_map
from acdc.plan import Plan, estimate
from acdc.spec import PatchSpec, parse_job

GRAPH = Graph(SIZE.shape)
LAYERS, HEADS = 2, 4
ROLES = {"subject": [0, 3], "verb": [4, 6]}
TOKENS = 10


def patch(map: object, **fields: Any) -> PatchSpec:
    task = {"name": "custom", "pairs": [{**pair, "spans": ROLES} for pair in PAIRS]}
    spec = parse_job({"kind": "patch", "task": task, "map": map, **fields})
    assert isinstance(spec, PatchSpec)
    return spec


def plan(map: object, **fields: Any) -> Plan:
    return estimate(patch(map, **fields), FACTS, SPEED)


@pytest.mark.parametrize(
    ("map", "cells"),
    [
        ("activations", LAYERS * HEADS * 3),
        ({"state": "mlp"}, LAYERS * 3),
        ({"state": "k", "places": "all"}, LAYERS * HEADS),
        ({"state": "mlp", "places": "position"}, LAYERS * TOKENS),
        ({"roles": ["subject"]}, LAYERS * HEADS),
        ("causes", LAYERS * 5 * 3),
        ("knockout", LAYERS * 2),
        ({"name": "knockout", "blocked": [["end", "verb"]]}, LAYERS),
        ("paths", LAYERS * HEADS),
        ({"name": "paths", "receivers": "heads"}, HEADS * HEADS),
        ({"name": "paths", "senders": ["embed", "mlp1"], "receivers": ["mlps", "logits"]}, 3 + 1),
        ({"name": "paths", "senders": [["heads"], ["mlps", "embed"]]}, 2),
        ({"name": "paths", "senders": [{"label": "x", "nodes": ["all"]}], "receivers": ["mlps", ["mlps"]]}, 2 + 1),
    ],
)
def test_cells_are_counted_before_anything_is_loaded(map: object, cells: int) -> None:
    assert cells_of_map(patch(map), GRAPH, TOKENS) == cells


def test_cells_of_one_set_are_one() -> None:
    asked = {"name": "paths", "senders": [["0.1", "1.1"]], "receivers": [["logits", "mlp1"]]}
    assert cells_of_map(patch(asked), GRAPH, TOKENS) == 1


def test_model_without_mlps_has_no_rows_and_sets_of_them() -> None:
    graph = Graph(replace(SIZE.shape, has_mlp=False))
    assert cells_of_map(patch("causes"), graph, TOKENS) == LAYERS * 3 * 3
    asked = {"name": "paths", "senders": ["embed", ["mlps"]], "receivers": ["mlps", "logits"]}
    assert cells_of_map(patch(asked), graph, TOKENS) == 1


def test_map_takes_two_runs_and_its_cells_for_every_prompt() -> None:
    forwards = RUNS + LAYERS * HEADS * 3 * CELL
    assert forwards_of_map(patch("activations"), GRAPH, TOKENS)[0] == forwards
    assert seconds(plan("activations"), "search") == pytest.approx(N_PAIRS * forwards * FORWARD / 1e6)
    assert seconds(plan("activations"), "evaluate") == 0


def test_noise_is_sampled_and_the_corrupt_prompt_is_not() -> None:
    few, many = (forwards_of_map(patch({"name": "causes", "samples": n}), GRAPH, TOKENS)[0] for n in (1, 3))
    assert many - RUNS == 3 * (few - RUNS)
    prompt = {"name": "causes", "samples": 3, "sigma": None}
    assert forwards_of_map(patch(prompt), GRAPH, TOKENS)[0] == few


def test_path_costs_two_streams() -> None:
    assert forwards_of_map(patch("paths"), GRAPH, TOKENS)[0] == RUNS + LAYERS * HEADS * PATH_CELL


def test_disk_holds_every_examples_metric() -> None:
    small, large = (plan({"state": "mlp", "places": places}) for places in ("all", "position"))
    assert small.disk.n_bytes is not None
    assert large.disk.n_bytes is not None
    assert large.disk.n_bytes - small.disk.n_bytes == LAYERS * (TOKENS - 1) * (N_PAIRS + 3) * 8
