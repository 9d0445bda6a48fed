"""Numbers as people read them."""

from __future__ import annotations

import pytest

from acdc import numerals


@pytest.mark.parametrize("digits", [0, 1, 2, 3])
def test_nothing_that_rounds_to_zero_has_a_sign(digits: int) -> None:
    for value in (-0.0, -4.099e-07, -0.49 * 10.0**-digits):
        assert numerals.fixed(value, digits) == numerals.fixed(0.0, digits)
    assert numerals.fixed(-(10.0**-digits), digits).startswith("-")


def test_each_kind_of_number_is_written_in_one_way() -> None:
    assert [numerals.figure(one) for one in (1.0, 0.83333, -4.1e-7, 12345.6)] == [
        "1.000",
        "0.833",
        "0.000",
        "12,345.600",
    ]
    assert [numerals.two_digits(one) for one in (None, -0.001, 0.995)] == ["withheld", "0.00", "0.99"]
    assert [numerals.probability(one) for one in (0.0, 0.00099, 0.001, 0.5)] == ["< 0.001", "< 0.001", "0.001", "0.500"]
    assert [numerals.significant(one) for one in (0.0, -0.0, 8.7123e-6)] == ["0", "0", "8.712e-06"]
    assert [numerals.memory(one) for one in (2_248_355_840, 16_944_168)] == ["2.25 GB", "17 MB"]
    assert [numerals.duration(one) for one in (12.4, 266.8, 9000)] == ["12 s", "4 min", "2.5 h"]


def test_one_thing_is_no_plural() -> None:
    assert [numerals.count(n, "MLP") for n in (0, 1, 1200)] == ["0 MLPs", "1 MLP", "1,200 MLPs"]
    assert [numerals.count(n, "search", "searches") for n in (1, 2)] == ["1 search", "2 searches"]


def test_names_are_listed_as_people_list_them() -> None:
    assert [numerals.listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        *("", "a", "a and b", "a, b and c")
    ]


@pytest.mark.parametrize(
    ("values", "digits"), [([17.2, -0.5], 2), ([0.0213], 5), ([12345.0], 0), ([1e-12], 9), ([0.0], 3), ([], 3)]
)
def test_a_column_has_four_digits_that_count_for_its_largest_number(values: list[float], digits: int) -> None:
    assert numerals.alike(values) == digits
