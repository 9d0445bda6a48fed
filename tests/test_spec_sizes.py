"""A number of edges or a share of them, written the same way wherever a spec asks for one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from acdc.errors import SpecError
from acdc.spec import DiscoverSpec, parse_job


def size_of(value: object) -> object:
    spec = parse_job({"selection": {"size": value}}, is_request=True)
    assert isinstance(spec, DiscoverSpec)
    return spec.selection.size


def edges_of(method: str, value: object) -> object:
    spec = parse_job({"method": {"name": method, "edges": value}}, is_request=True)
    return spec.method.edges  # type: ignore[union-attr]


ASKED: dict[str, Callable[[object], dict[str, Any]]] = {
    "selection.size": lambda value: {"selection": {"size": value}},
    "edges of edge-pruning": lambda value: {"method": {"name": "edge-pruning", "edges": value}},
    "edges of acdc": lambda value: {"method": {"name": "acdc", "edges": value}},
}


def refusal(asked: str, value: object) -> str:
    with pytest.raises(SpecError) as caught:
        parse_job(ASKED[asked](value))
    (fault,) = caught.value.faults
    assert fault.where == ("selection.size" if asked == "selection.size" else "method.edges")
    return fault.message


@pytest.mark.parametrize(
    ("written", "read"),
    [(1, 1), (100, 100), (100.0, 100), (0.02, 0.02), (1e-9, 1e-9)],
)
def test_numbers_of_edges_and_shares_are_read_alike(written: float, read: float) -> None:
    for found in (size_of(written), edges_of("edge-pruning", written)):
        assert found == read
        assert type(found) is type(read)


@pytest.mark.parametrize("written", [1.0, "all"])
def test_all_edges_are_a_share_and_have_a_word(written: object) -> None:
    found = size_of(written)
    assert found == 1.0
    assert isinstance(found, float), "1 would be one edge"
    again = json.loads(parse_job({"selection": {"size": written}}).canonical_json)
    assert size_of(again["selection"]["size"]) == 1.0
    assert isinstance(again["selection"]["size"], float)


@pytest.mark.parametrize("value", [True, False, 0, -3, 0.0, -0.5, 2.7, "100", "1.0", math.inf, math.nan, [1]])
@pytest.mark.parametrize("asked", ASKED)
def test_what_is_neither_is_refused(asked: str, value: object) -> None:
    message = refusal(asked, value)
    assert message.startswith("give a number of edges (100)")
    assert f"not {value!r}; 1 is one edge" in message


@pytest.mark.parametrize("value", [1.0, "all"])
@pytest.mark.parametrize("asked", ["edges of edge-pruning", "edges of acdc"])
def test_a_search_that_cuts_edges_is_not_asked_for_all(asked: str, value: object) -> None:
    assert f"not {value!r}; 1 is one edge" in refusal(asked, value)


def test_a_threshold_is_bisected_for_a_number_and_no_share() -> None:
    assert edges_of("acdc", 100.0) == 100
    assert "not 0.02" in refusal("edges of acdc", 0.02)


def test_the_default_of_edge_pruning_is_dumped_as_it_was() -> None:
    assert '"edges":0.02' in parse_job({"method": "edge-pruning"}).canonical_json
