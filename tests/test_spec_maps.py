"""The specs of patching maps: what a word stands for, and what is refused before a job exists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from acdc.errors import SpecError
from acdc.spec import (
    MAP_PROMPTS,
    MAP_SPECS,
    Activations,
    Causes,
    Knockout,
    NodeSet,
    PatchSpec,
    Paths,
    RestoredSpec,
    parse_job,
)


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


def sets(*senders: object) -> list[object]:
    """A word as it is, a set as its label and nodes."""
    asked = patch(map={"name": "paths", "senders": list(senders)}).map
    assert isinstance(asked, Paths)
    assert parse_job({"kind": "patch", "map": json.loads(asked.model_dump_json())}).map == asked  # type: ignore[union-attr]
    return [one if isinstance(one, str) else (one.label, one.nodes) for one in asked.senders]


def test_names_lists_and_labels_are_sets_of_nodes() -> None:
    assert sets("9.6", ["9.9", "10.0"]) == [("9.6", ("9.6",)), ("9.9+10.0", ("9.9", "10.0"))]
    assert sets({"label": "movers", "nodes": ["9.9", "mlp3"]}) == [("movers", ("9.9", "mlp3"))]
    asked = patch(map={"name": "paths", "receivers": "11.2.q"}).map
    assert isinstance(asked, Paths)
    assert asked.receivers == (NodeSet(label="11.2.q", nodes=("11.2.q",)),)


def test_word_alone_is_every_such_node_and_in_a_set_a_part_of_it() -> None:
    assert sets("heads", "mlps") == ["heads", "mlps"]
    assert sets(["heads"], ["mlps", "9.6"]) == [("heads together", ("heads",)), ("mlps+9.6", ("mlps", "9.6"))]
    assert sets({"label": "heads", "nodes": ["heads"]}) == [("heads", ("heads",))]
    assert sets("heads", {"label": "heads", "nodes": ["mlp3"]})[0] == "heads"


def test_long_lists_have_short_labels_that_tell_them_apart() -> None:
    many = [f"{layer}.{head}" for layer in range(12) for head in range(12)]
    labels = [label for label, _ in sets(many, [*many, "mlp3"], many[::-1], [*many[:-1], "mlp0"])]  # type: ignore[misc]
    assert len(set(labels)) == 4
    assert all(len(label) <= 200 and label.startswith(("0.0+0.1", "11.11+")) for label in labels)
    assert "(144 nodes, " in labels[0]


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


BOTH, MLP_SEVERED = ["mlp", "attention"], "map.restored.0.severed.0"


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
        ({"name": "paths", "senders": [{"label": "x", "nodes": [9.6]}]}, "map.senders.0.nodes.0", "in quotes"),
        (
            {"name": "paths", "senders": [{"label": "x", "nodes": ["9.6"], "lable": "y"}]},
            "map.senders.0.lable",
            "did you mean label?",
        ),
        ({"name": "paths", "senders": [{"label": "x", "nodes": ["hads"]}]}, "map.senders", "no senders: 'hads'"),
        ({"name": "paths", "senders": ["pos"]}, "map.senders", "'pos'; they look like"),
        ({"name": "paths", "senders": [["pos", "9.6"]]}, "map.senders", "positions are a part of embed here"),
        ({"name": "paths", "senders": ["heads", "mlps", "heads"]}, "map.senders", "asked for twice: 'heads'"),
        ({"name": "paths", "senders": [["heads"], ["heads"]]}, "map.senders", "twice: 'heads together'"),
        ({"name": "knockout", "heads": [9.6]}, "map.heads.0", "9.6 is a number"),
        ({"name": "knockout", "heads": []}, "map.heads", "at least one"),
        ({"name": "paths", "receivers": ["embed"]}, "map.receivers", "'embed'"),
        ({"name": "paths", "receivers": ["mlp1", "mlp1"]}, "map.receivers", "asked for twice: 'mlp1'"),
        ({"name": "paths", "between": "fre"}, "map.between", "did you mean free?"),
        ({"name": "causes", "sigma": -1}, "map.sigma", "greater than or equal to 0"),
        ({"name": "causes", "samples": 0}, "map.samples", "greater than or equal to 1"),
        ({"name": "causes", "restored": [{"state": "head"}]}, "map.restored.0.state", "'head'"),
        ({"name": "causes", "restored": [{"state": "mlp", "severed": "mlp"}]}, "map.restored.0.severed", "residual"),
        ({"name": "causes", "restored": [{"state": "mlp"}, {"state": "mlp"}]}, "map.restored", "twice: mlp"),
        ({"name": "causes", "restored": []}, "map.restored", "at least one"),
        ({"name": "causes", "restored": [{"state": "residual_after", "severed": "mpl"}]}, MLP_SEVERED, "mean mlp?"),
        (
            {"name": "causes", "restored": [{"state": "residual_after", "severed": s} for s in (BOTH, BOTH[::-1])]},
            "map.restored",
            "twice: residual_after",
        ),
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


def restored(*rows: dict[str, Any]) -> tuple[RestoredSpec, ...]:
    asked = patch(map={"name": "causes", "restored": list(rows)}).map
    assert isinstance(asked, Causes)
    return asked.rows(has_mlp=True)


def test_paper_on_causal_tracing_is_the_default_as_far_as_a_model_has_it() -> None:
    asked = patch(map="causes").map
    assert isinstance(asked, Causes)
    assert (asked.sigma, asked.samples) == (3.0, 10)
    rows = {
        has_mlp: [(one.state, one.window, one.severed) for one in asked.rows(has_mlp=has_mlp)]
        for has_mlp in (True, False)
    }
    assert rows[True] == [
        ("residual_after", 1, ()),
        ("residual_after", 1, ("mlp",)),
        ("residual_after", 1, ("attention",)),
        ("mlp", 10, ()),
        ("attention", 10, ()),
    ]
    assert rows[False] == [row for row in rows[True] if "mlp" not in (row[0], *row[2])]


def test_rows_that_are_asked_for_are_not_left_out_for_any_model() -> None:
    asked = patch(map={"name": "causes", "restored": [{"state": "mlp"}]}).map
    assert isinstance(asked, Causes)
    assert asked.rows(has_mlp=False) == asked.restored


def test_severed_is_a_word_a_list_or_nothing() -> None:
    """A list in either order is the same row."""
    for written, meant in (
        ("mlp", ("mlp",)),
        (None, ()),
        ([], ()),
        (["attention", "mlp", "mlp"], ("mlp", "attention")),
    ):
        (one,) = restored({"state": "residual_after", "severed": written})
        assert one.severed == meant


def test_state_may_be_asked_for_in_several_windows() -> None:
    assert [one.window for one in restored({"state": "mlp"}, {"state": "mlp", "window": 10})] == [1, 10]


@pytest.mark.parametrize(
    ("map", "needs"),
    [
        ("activations", True),
        ("paths", True),
        ("causes", False),
        ({"name": "causes", "sigma": 0}, False),
        ({"name": "causes", "sigma": None}, True),
        ("knockout", False),
    ],
)
def test_corrupt_prompts_are_needed_where_their_values_are_taken(map: object, needs: bool) -> None:
    assert patch(map=map).needs_corrupt == needs
    assert parse_job({"task": "ioi"}).needs_corrupt  # type: ignore[union-attr]


def test_spans_may_not_take_the_names_of_other_places() -> None:
    pairs = [{"clean": "a b", "answers": " c", "spans": {"all": [0, 1], "verb": [2, 3], "end": [0, 1]}}]
    found = faults(task={"name": "custom", "pairs": pairs})
    assert list(found) == ["task.pairs.0.spans"]
    assert (
        "'all' is every position, 'end' is the last token of every prompt; take others" in found["task.pairs.0.spans"]
    )
