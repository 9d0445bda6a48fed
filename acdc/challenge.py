"""What a challenge found: a circuit in many settings, and what survived. Plain numbers and words, torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from acdc.numerals import count
from acdc.plain import from_plain

LOW, HIGH = 0.8, 1.2  # f of a circuit that holds
SURVIVES = 0.9  # share of searches that have an edge of the core
FEWEST_SEARCHES = 10  # of fewer, all would have to have it
DRAWN = {"groups": "groups of prompts", "prompts": "sets of other prompts", "resample": "draws of the same prompts"}


@dataclass(frozen=True)
class Tried:
    """The circuit in one setting, on that setting's held-out prompts.

    kind: own (as it was found), one (one choice changed), factorial (several), group (its own setting, one group of
    prompts). factor: the one choice that was changed, as the spec's `vary` names it. f: None where it was withheld or
    nothing was measured; `skipped` then says why. found_edges, jaccard, found_f: of the circuit that the same search
    finds there, None where none was made; jaccard is with the circuit that was challenged. shares_search_with: the
    setting whose search it has, where the change does not reach the search.
    """

    name: str
    kind: str
    f: float | None = None
    kl_share: float | None = None
    accuracy: float | None = None
    n_examples: int = 0
    found_edges: int | None = None
    jaccard: float | None = None
    found_f: float | None = None
    skipped: str = ""
    factor: str = ""
    shares_search_with: str = ""

    @property
    def holds(self) -> bool | None:
        return None if self.f is None else LOW <= self.f <= HIGH


@dataclass(frozen=True)
class Control:
    """Circuits that should not hold, in the challenged circuit's own setting. f, edges: of each; jaccard: the mean,
    with the circuit that was challenged. skipped: why none was measured."""

    name: str
    f: tuple[float | None, ...] = ()
    edges: tuple[int, ...] = ()
    jaccard: float | None = None
    skipped: str = ""

    @property
    def told(self) -> tuple[float, ...]:
        return tuple(f for f in self.f if f is not None)

    @property
    def n_hold(self) -> int:
        return sum(LOW <= f <= HIGH for f in self.told)


@dataclass(frozen=True)
class NotVaried:
    """A choice that was to be varied and could not be, and why."""

    factor: str
    why: str


@dataclass(frozen=True)
class Survivor:
    """An edge of the circuit, and the share of searches that found it again."""

    edge: str
    share: float


@dataclass(frozen=True)
class Challenge:
    """edges: of the circuit, most often found first; empty where nothing was searched again. n_searches: that were made
    besides the one of its own setting, each counted once however many settings have it. core_edges: connected edges
    that survive in at least 90 % of these, 0 where they were too few to tell. not_varied: what was asked for
    besides."""

    n_edges: int
    tried: tuple[Tried, ...]
    controls: tuple[Control, ...] = ()
    edges: tuple[Survivor, ...] = ()
    n_searches: int = 0
    core_edges: int = 0
    not_varied: tuple[NotVaried, ...] = ()

    @property
    def told(self) -> tuple[Tried, ...]:
        """Settings in which f could be told."""
        return tuple(one for one in self.tried if one.holds is not None)

    @property
    def fails(self) -> tuple[str, ...]:
        """Single choices that it does not outlive; of prompts that were drawn, how many draws."""
        single = [one for one in self.told if one.kind in ("one", "group")]
        found = [one.name for one in single if one.factor not in DRAWN and not one.holds]
        for factor, what in DRAWN.items():
            draws = [one for one in single if one.factor == factor]
            if n := sum(not one.holds for one in draws):
                found.append(f"{n} of {len(draws)} {what}")
        return tuple(found)

    @property
    def sentence(self) -> str:
        held = sum(bool(one.holds) for one in self.told)
        parts = [f"f in [{LOW}, {HIGH}] in {held} of {count(len(self.told), 'setting')}"]
        if left := len(self.tried) - len(self.told):
            parts[0] += f" ({left} more could not be told)"
        own = next((one for one in self.tried if one.kind == "own"), None)
        if own is not None and own.f is None:
            parts.append(f"in its own setting it could not be told: {own.skipped}")
        elif own is not None and not own.holds:
            parts.append(f"it does not hold in its own setting (f {own.f:.2f})")
        if self.fails:
            parts.append(f"fails under {', '.join(self.fails)}")
        elif any(one.kind in ("one", "group") for one in self.told):
            parts.append("no single change makes it fail")
        if 0 < self.n_searches < FEWEST_SEARCHES:
            searches = "1 search is" if self.n_searches == 1 else f"{self.n_searches} searches are"
            parts.append(f"{searches} too few to tell what survives")
        elif self.n_searches:
            n = sum(one.share >= SURVIVES for one in self.edges)
            parts.append(f"{n} of {self.n_edges} edges survive in at least 90 % of {self.n_searches} searches")
        if n_told := sum(len(one.told) for one in self.controls):
            parts.append(f"{sum(one.n_hold for one in self.controls)} of {n_told} controls hold")
        if self.not_varied:
            parts.append(f"not varied: {', '.join(one.factor for one in self.not_varied)}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Challenge:
        """The inverse of `to_dict`, after JSON. Raises TypeError or ValueError."""
        return from_plain(cls, {name: value for name, value in data.items() if name != "sentence"})


def survivors(names: Sequence[str], shares: Sequence[float]) -> tuple[Survivor, ...]:
    """Most often found first; ties in the order given."""
    return tuple(sorted((Survivor(*one) for one in zip(names, shares, strict=True)), key=lambda one: -one.share))
