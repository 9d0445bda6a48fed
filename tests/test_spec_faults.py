"""A mistyped name in a spec is answered with what was probably meant, a fault in a row with its number."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from acdc.api.circuits import Labels
from acdc.challenge_settings import controls_of
from acdc.errors import Fault, SpecError
from acdc.metrics import METRICS
from acdc.spec import KINDS, ChallengeSpec, DiscoverSpec, faults_of, parse_job
from acdc.spec.forms import COMPARES_WITH_WRONG
from acdc.suggestions import did_you_mean


def only_fault(spec: dict[str, Any]) -> Fault:
    with pytest.raises(SpecError) as caught:
        parse_job(spec, is_request=True)
    (fault,) = caught.value.faults
    return fault


@pytest.mark.parametrize(
    ("spec", "where", "wrong", "meant", "also_known"),
    [
        ({"taks": "ioi"}, "taks", "'taks'", "task", "evaluation"),
        ({"method": "epa"}, "method", "'epa'", "eap", "exact"),
        ({"method": {"name": "epa"}}, "method", "'epa'", "eap", "exact"),
        ({"method": {"stepz": 3}}, "method.stepz", "'stepz'", "steps", "objective"),
        ({"method": {"name": "acdc", "threshold": 1}}, "method.threshold", "'threshold'", "thresholds", "warm_start"),
        ({"metric": "logit_dif"}, "metric", "'logit_dif'", "logit_diff", "accuracy"),
        ({"task": "IOI"}, "task.name", "'IOI'", "ioi", "greater_than"),
        ({"task": {"corruption": "abd"}}, "task.corruption", "'abd'", "abc", "s2_io_flip"),
        ({"model": "gemma3-270m"}, "model", "'gemma3-270m'", "gemma3-270m-q4", "smollm2-135m-instruct-q4"),
        (
            {"kind": "evaluate", "circuit": "c", "edit": {"remove_node": ["9.6"]}},
            "edit.remove_node",
            "'remove_node'",
            "remove_nodes",
            "add_edges",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistyped_name_is_named_with_the_nearest_and_the_known_ones(
    spec: dict[str, Any], where: str, wrong: str, meant: str, also_known: str
) -> None:
    fault = only_fault(spec)
    assert fault.where == where
    assert wrong in fault.message
    assert f"did you mean {meant}?" in fault.message
    assert also_known in fault.message.partition("known")[2] or also_known in fault.message.partition("it has")[2]
    assert "Input" not in fault.message
    assert "not permitted" not in fault.message


def test_a_method_of_several_is_asked_for_its_name() -> None:
    fault = only_fault({"method": {"name": "ensemble", "methods": ["eap", {"steps": 3}]}})
    assert fault.where == "method.methods.1"
    assert fault.message.startswith("give the method a `name`: nothing else says which one is meant; known: eap, ")
    assert "ensemble" not in fault.message


@pytest.mark.parametrize(
    ("spec", "where", "said"),
    [
        ({"task": 3}, "task", "give a mapping of fields, not 3"),
        ({"method": ["eap"]}, "method", "give a mapping of fields, not ['eap']"),
        ({"selection": 20}, "selection", "give a mapping of fields, not 20"),
        ({"method": {"name": "ensemble", "methods": "eap"}}, "method.methods", "give a list, not 'eap'"),
    ],
)
def test_values_of_another_shape_are_told_the_shape_in_words(spec: dict[str, Any], where: str, said: str) -> None:
    assert only_fault(spec) == Fault(where, said)


def test_field_of_another_method_is_not_said_to_be_known() -> None:
    message = only_fault({"method": {"name": "acdc", "steps": 3}}).message
    assert "thresholds" in message
    assert "steps" not in message.partition("known")[2]


def test_mistyped_field_of_a_custom_pair_is_told_those_of_a_pair() -> None:
    with pytest.raises(SpecError) as caught:
        parse_job({"task": {"name": "custom", "pairs": [{"clean": "a", "answers": ["b"], "gruop": "g"}]}})
    told = {fault.where: fault.message for fault in caught.value.faults}
    assert "did you mean group?" in told["task.pairs.0.gruop"]
    assert "held_out" not in told["task.pairs.0.gruop"]


ROW = {"clean": "a", "corrupt": "b", "answers": " c", "wrong": " d"}
WITHOUT = {**ROW, "wrong": []}


def of_rows(*rows: object, **fields: object) -> list[Fault]:
    with pytest.raises(SpecError) as caught:
        parse_job({"task": {"name": "custom", "pairs": list(rows)}, **fields}, is_request=True)
    return list(caught.value.faults)


def test_a_fault_in_a_row_names_the_row_counted_from_1() -> None:
    faults = of_rows(ROW, {**ROW, "answers": []}, {**ROW, "gruop": "g"})
    assert [fault.where for fault in faults] == ["task.pairs.1.answers", "task.pairs.2.gruop"]
    assert faults[0].message == "is empty: give at least 1 (row 2)"
    assert faults[1].message.endswith("(row 3)")


def test_rows_without_wrong_answers_are_named_where_the_metric_compares_with_them() -> None:
    (fault,) = of_rows(ROW, WITHOUT, ROW, WITHOUT)
    assert fault.where == "metric"
    assert "rows 2, 4 of 4 have none: give `wrong`" in fault.message
    assert "answer_logprob" in fault.message
    (fault,) = of_rows(*[WITHOUT] * 12, metric="prob_diff", method={"name": "eap", "objective": "answer_logprob"})
    assert "rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more of 12" in fault.message
    (fault,) = of_rows(WITHOUT, metric="answer_logprob", method={"name": "eap", "objective": "logit_diff"})
    assert (fault.where, "row 1 of 1 has none" in fault.message) == ("method.objective", True)
    (fault,) = of_rows(WITHOUT, kind="patch")
    assert fault.where == "metric"


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "answer_logprob"},
        {"kind": "patch", "metric": "answer_probability"},
        {"task": {"name": "custom", "pairs": [WITHOUT], "corruption": "swap_within_group"}},
    ],
)
def test_rows_without_wrong_answers_are_taken_where_nothing_needs_them(fields: dict[str, Any]) -> None:
    parse_job({"task": {"name": "custom", "pairs": [WITHOUT]}, **fields}, is_request=True)


def test_metrics_that_compare_with_wrong_answers_are_those_of_the_engine() -> None:
    assert {name for name, metric in METRICS.items() if metric.needs_wrong} == COMPARES_WITH_WRONG


def test_mistyped_job_kind_is_told_the_nearest() -> None:
    known = ", ".join(KINDS)
    with pytest.raises(SpecError, match=rf"'discovr'; did you mean discover\? known kinds: {known}"):
        parse_job({"kind": "discovr"})


def test_name_that_is_near_none_is_not_guessed_at() -> None:
    assert did_you_mean("zzzz", ("ioi", "docstring")) == ""
    fault = only_fault({"zzzz": 1})
    assert "did you mean" not in fault.message
    assert "known: " in fault.message


def test_faults_of_a_relabelled_circuit_know_its_own_fields() -> None:
    with pytest.raises(ValidationError) as caught:
        Labels.model_validate({"nmae": "x"})
    (fault,) = faults_of(caught.value, Labels)
    assert fault == Fault("nmae", "there is no field 'nmae' here; did you mean name? known: name, tags, notes")


def test_value_that_is_no_word_is_shown_as_it_was_given() -> None:
    assert only_fault({"metric": 3}).message.endswith("got 3")


def custom(**spans: tuple[int, int]) -> dict[str, Any]:
    return {"name": "custom", "pairs": [{"clean": "a b", "answers": [" c"], "wrong": [" d"], "spans": spans}]}


@pytest.mark.parametrize("positions", [5, None, "", ",", [], [""], {"S2": 1}, [f"role {i}" for i in range(21)]])
def test_what_positions_cannot_be_is_one_fault_that_says_what_they_can(positions: object) -> None:
    fault = only_fault({"positions": positions})
    assert fault.where == "positions"
    assert fault.message.startswith("give `all`, `roles`, or 1 to 20 names of roles, like IO,end; got ")
    assert repr(positions)[:60] in fault.message


@pytest.mark.parametrize("positions", [["roles"], "roles,end", ["S2", "all"]])
def test_words_for_every_role_stand_in_no_list(positions: object) -> None:
    word = "all" if "all" in positions else "roles"  # type: ignore[operator]
    assert only_fault({"positions": positions}) == Fault(
        "positions", f"`{word}` stands alone: write positions: {word}; got {positions!r}"
    )


@pytest.mark.parametrize(
    ("task", "positions", "told"),
    [
        ("ioi", "role", "task 'ioi' has no role 'role'; did you mean roles? it has: IO, S1, S2, end, other"),
        ("ioi", "Roles", "task 'ioi' has no role 'Roles'; did you mean roles? it has: IO, S1, S2, end, other"),
        ("ioi", "S4", "task 'ioi' has no role 'S4'; it has: IO, S1, S2, end, other"),
        ("ioi", "io,S2,ned", "task 'ioi' has no role 'io', 'ned'; did you mean IO? did you mean end? it has: IO"),
        ("greater_than", "S2", "task 'greater_than' has no role 'S2'; it has: noun, century, start, end, other"),
        (custom(verb=(0, 1)), "vreb", "task 'custom' has no role 'vreb'; did you mean verb? it has: verb, end, other"),
    ],
)
def test_roles_that_the_task_has_not_are_named_before_a_model_is_loaded(task: Any, positions: str, told: str) -> None:
    fault = only_fault({"task": task, "positions": positions})
    assert fault.where == "positions"
    assert fault.message.startswith(told)


def test_a_challenge_may_put_the_roles_of_a_circuit_on_another_task() -> None:
    challenge, behind = parse_job({"kind": "challenge", "circuit": "c"}), parse_job({"task": "ioi", "positions": "S2"})
    assert isinstance(challenge, ChallengeSpec)
    assert isinstance(behind, DiscoverSpec)
    assert [one.spec.positions for one in controls_of(challenge, behind, "signed")] == [("S2",)] * 3


@pytest.mark.parametrize("name", ["", " "])
def test_a_span_without_a_name_is_refused(name: str) -> None:
    fault = only_fault({"task": custom(**{name: (0, 1), "verb": (2, 3)})})
    assert fault.where == "task.pairs.0.spans"
    assert "has a span without a name" in fault.message


def test_a_pair_has_no_more_spans_than_edges_can_be_split_by() -> None:
    spans = {f"span {i}": (0, 1) for i in range(21)}
    fault = only_fault({"task": custom(**spans)})
    assert fault.where == "task.pairs.0.spans"
    assert "at most 20" in fault.message
    spans.popitem()
    parse_job({"task": custom(**spans), "positions": list(spans)}, is_request=True)
