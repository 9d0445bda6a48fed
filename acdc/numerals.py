"""Numbers as people read them: one way for each kind of number, on cards, on the command line and in pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

WITHHELD = "withheld"
SMALLEST_P = 0.001  # what is less is said to be less


def fixed(value: float, digits: int) -> str:
    """So many digits after the point, thousands apart; zero has no sign."""
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if not text.strip("-0.,") else text


def figure(value: float) -> str:
    """A measured figure: f, a share, the metric, KL, accuracy. Three digits after the point, so that columns align."""
    return fixed(value, 3)


def two_digits(value: float | None) -> str:
    """A figure in running text; one that is not there was withheld."""
    return WITHHELD if value is None else fixed(value, 2)


def probability(p: float) -> str:
    """A p-value: one that would read as zero is said to be less."""
    return f"< {SMALLEST_P:g}" if 0 <= p < SMALLEST_P else fixed(p, 3)


def alike(values: Iterable[float], most: int = 9) -> int:
    """Digits after the point for a column of numbers of any size, such as scores: four that count for the largest."""
    largest = max((abs(value) for value in values), default=0.0)
    return 3 if largest == 0 else min(max(3 - math.floor(math.log10(largest)), 0), most)


def significant(value: float) -> str:
    """A number that stands alone and may be of any size."""
    return f"{value:.4g}" if value else "0"


def percent(fraction: float) -> str:
    return f"{fraction * 100:.3g} %"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """12 edges, 1 edge. plural: of a noun that takes more than an s."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def memory(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """In the unit that people would say it in."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
