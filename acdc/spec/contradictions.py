"""Choices of a job that are right alone and not together, told all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from acdc.errors import Fault


class Contradictions(ValueError):
    """What a job's validator found, all of it: choices that are right alone and not together. Places count from the top
    of the job."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


def refuse(faults: Iterable[Fault]) -> None:
    """Raises Contradictions if there are any."""
    if found := tuple(faults):
        raise Contradictions(found)


def moved_into(where: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    """The same, their places counted from further out."""
    for fault in faults:
        yield Fault(f"{where}.{fault.where}", fault.message)
