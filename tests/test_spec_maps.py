"""The specs of patching maps: what a word stands for, and what is refused before a job exists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from acdc.errors import SpecError
from acdc.spec import MAP_PROMPTS, MAP_SPECS, Activations, Causes, Knockout, PatchSpec, Paths, parse_job


def patch(**fields: Any) -> PatchSpec:
    spec = parse_job({"kind": "patch", **fields})
    assert isinstance(spec, PatchSpec)
    return spec


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        patch(**fields)
    return {fault.where: fault.message for fault in caught.value.faults}


def test_smallest_spec_denoises_every_head_at_every_role() -> None:
    spec = patch()
    assert spec == patch(map="activations") == patch(map={}) == patch(map={"name": "activations"})
    assert spec.map == Activations(state="head", places="role", direction="denoising")
    assert (spec.task.name, spec.metric, spec.task.sizes) == ("ioi", "logit_diff", (MAP_PROMPTS, 0))


def test_fields_alone_are_those_of_the_default_map() -> None:
    assert patch(map={"state": "mlp"}) == patch(map={"name": "activations", "state": "mlp"})


@pytest.mark.parametrize("name", MAP_SPECS)
def test_written_out_spec_is_the_same_spec(name: str) -> None:
    spec = patch(map=name)
    again = parse_job(json.loads(spec.canonical_json))
    assert again == spec
    assert again.sha256 == spec.sha256
    assert spec.map == MAP_SPECS[name]()


def test_all_custom_pairs_are_used_unless_fewer_are_asked_for() -> None:
    pairs = [{"clean": "a", "corrupt": "b", "answers": "c"}] * 50
    assert patch(task={"name": "custom", "pairs": pairs}).task.sizes == (50, 0)
    assert patch(task={"name": "custom", "pairs": pairs, "prompts": 7}).task.sizes == (7, 0)


def test_names_lists_and_labels_are_sets_of_nodes() -> None:
    asked = patch(map={"name": "paths", "senders": ["9.6", ["9.9", "10.0"]], "receivers": "11.2.q"}).map
    assert isinstance(asked, Paths)
    assert [(one.label, one.nodes) for one in asked.senders] == [("9.6", ("9.6",)), ("9.9+10.0", ("9.9", "10.0"))]
    assert [one.nodes for one in asked.receivers] == [("11.2.q",)]
    labelled = patch(map={"name": "paths", "senders": [{"label": "movers", "nodes": ["9.9", "mlp3"]}]}).map
    assert isinstance(labelled, Paths)
    assert labelled.senders[0].label == "movers"


def test_roles_and_blocked_pairs_are_asked_for_once() -> None:
    roles = patch(map={"roles": ["IO", "S1", "IO"]}).map
    assert isinstance(roles, Activations)
    assert roles.roles == ("IO", "S1")
    knockout = patch(map={"name": "knockout", "blocked": [["end", "IO"], ["end", "IO"]]}).map
    assert isinstance(knockout, Knockout)
    assert knockout.blocked == (("end", "IO"),)


def test_what_means_nothing_for_a_map_is_refused() -> None:
    found = faults(
        evaluation={}, selection={}, ablation="zero", method="eap", task={"held_out": 4}, split_position=True
    )
    assert set(found) == {"evaluation", "selection", "ablation", "method", "task.held_out", "split_position"}


@pytest.mark.parametrize(
    ("map", "where", "says"),
    [
        ("activation", "map", "did you mean activations? known: activations, paths, causes, knockout"),
        ({"state": "hed"}, "map.state", "did you mean head?"),
        ({"direction": "denoise"}, "map.direction", "did you mean denoising?"),
        ({"place": "role"}, "map.place", "did you mean places?"),
        ({"places": "position", "roles": "IO"}, "map.roles", "only with `places: role`"),
        ({"name": "paths", "senders": ["9.6.q"]}, "map.senders", "'9.6.q'; they look like 9.6, mlp3, embed"),
        ({"name": "paths", "senders": []}, "map.senders", "at least one"),
        (
            {"name": "paths", "senders": [["9.6", 9.1]]},
            "map.senders.0",
            "9.1 is a number; put the names of nodes in quotes",
        ),
        ({"name": "paths", "receivers": 9.6}, "map.receivers.0", "9.6 is a number"),
        ({"name": "paths", "senders": [{"label": "x", "nodes": []}]}, "map.senders.0.nodes", "at least 1"),
        ({"name": "knockout", "heads": [9.6]}, "map.heads.0", "9.6 is a number"),
        ({"name": "knockout", "heads": []}, "map.heads", "at least one"),
        ({"name": "paths", "senders": [["heads", "9.6"]]}, "map.senders", "heads, mlps, all stand alone"),
        ({"name": "paths", "receivers": ["embed"]}, "map.receivers", "'embed'"),
        ({"name": "paths", "receivers": ["mlp1", "mlp1"]}, "map.receivers", "asked for twice: 'mlp1'"),
        ({"name": "paths", "between": "fre"}, "map.between", "did you mean free?"),
        ({"name": "causes", "sigma": -1}, "map.sigma", "greater than or equal to 0"),
        ({"name": "causes", "samples": 0}, "map.samples", "greater than or equal to 1"),
        ({"name": "causes", "restored": [{"state": "head"}]}, "map.restored.0.state", "'head'"),
        ({"name": "causes", "restored": [{"state": "mlp", "severed": "mlp"}]}, "map.restored.0.severed", "residual"),
        ({"name": "causes", "restored": [{"state": "mlp"}, {"state": "mlp"}]}, "map.restored", "twice: mlp"),
        ({"name": "knockout", "heads": ["9"]}, "map.heads", "like 9.6"),
        ({"name": "knockout", "window": 0}, "map.window", "greater than or equal to 1"),
        ({"name": "knockout", "blocked": []}, "map.blocked", "at least one"),
    ],
)
def test_fault_in_a_map_is_named_with_the_way_out(map: object, where: str, says: str) -> None:
    found = faults(map=map)
    assert list(found) == [where]
    assert says in found[where]


def test_metrics_are_those_of_searches_and_the_papers_probability() -> None:
    assert patch(metric="answer_probability").metric == "answer_probability"
    assert "answer_probability" in faults(metric="probability")["metric"]


def test_paper_on_causal_tracing_is_the_default() -> None:
    asked = patch(map="causes").map
    assert isinstance(asked, Causes)
    assert (asked.sigma, asked.samples) == (3.0, 10)
    assert {(one.state, one.window) for one in asked.restored} == {
        ("residual_after", 1),
        ("mlp", 10),
        ("attention", 10),
    }
