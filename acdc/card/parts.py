"""What a card is made of: titles, sentences and tables of plain text, without markup; whoever shows it escapes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acdc import numerals

Cell = str | float | int | None
NOTHING = "-"
FACTS = ("what", "value")  # the columns of a table whose rows speak for themselves

# Columns that hold numbers of any size, written with as many digits as count for the largest of them.
ANY_SIZE = ("score", "cost", "cost in f", "cost in KL", "moved", "gap of the metric")


@dataclass(frozen=True)
class Table:
    """A column whose name begins with `#` holds numbers. A cell of None was withheld or not asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def written(self) -> list[list[str]]:
        """The rows as people read them; numbers of a column have as many digits after the point as each other."""
        by_column = [_written(name, column) for name, column in zip(self.columns, self._cells(), strict=True)]
        return [list(row) for row in zip(*by_column, strict=True)]

    def _cells(self) -> list[tuple[Cell, ...]]:
        return list(zip(*self.rows, strict=True)) if self.rows else [()] * len(self.columns)

    @classmethod
    def of(cls, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
        """Without the columns in which no row says anything."""
        rows = [tuple(row) for row in rows]
        says = [place for place in range(len(columns)) if not rows or any(row[place] not in (None, "") for row in rows)]
        return cls(tuple(columns[i] for i in says), tuple(tuple(row[i] for i in says) for row in rows))


def _written(column: str, cells: Sequence[Cell]) -> list[str]:
    name = column.removeprefix("#")
    digits = numerals.alike(one for one in cells if isinstance(one, float)) if name in ANY_SIZE else 3
    return [_cell(name, one, digits) for one in cells]


def _cell(column: str, value: Cell, digits: int) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, float):
        return numerals.probability(value) if column == "p" else numerals.fixed(value, digits)
    return f"{value:,}" if isinstance(value, int) else value


@dataclass(frozen=True)
class Section:
    """picture: draws its SVG, for whoever can show one. is_part: of the nearest section above that is not one."""

    title: str
    text: tuple[str, ...] = ()
    table: Table | None = None
    picture: Callable[[], str] | None = None
    is_part: bool = False


@dataclass(frozen=True)
class Card:
    """lead: what stands under the title. summary: the verdicts, before all else. circuit: its nodes, where the picture
    is; edges: the strongest of them."""

    title: str
    lead: tuple[str, ...]
    summary: Section
    circuit: Section
    edges: Section
    sections: tuple[Section, ...]

    @property
    def all_sections(self) -> tuple[Section, ...]:
        return (self.summary, self.circuit, self.edges, *self.sections)


def in_words(value: Any) -> str:
    """A setting: a number of any size, a collection as its items; nothing is a dash."""
    match value:
        case None:
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case float():
            return numerals.significant(value)
        case int():
            return f"{value:,}"
        case Mapping():
            return ", ".join(f"{key} {in_words(item)}" for key, item in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(in_words, value)) or "none"
        case _:
            return str(value)


def yes(value: bool | None) -> str | None:
    return None if value is None else in_words(value)
