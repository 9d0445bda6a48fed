"""What an evaluation has measured so far, so that one that was stopped does not measure it again.

Circuits are known by their edges and by the place where they were measured: which prompts, under which ablation. All
that an evaluation draws at random it draws from its seed, so a second run asks for the same circuits in the same order
and finds here what the first one has done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from acdc.evaluation.outcomes import Outcome
from acdc.graph import BoolMatrix
from acdc.progress import Array

Key = bytes  # sha256 of the packed mask


def key_of(mask: BoolMatrix) -> Key:
    return hashlib.sha256(np.packbits(mask).tobytes()).digest()


@dataclass
class Memory:
    """places: outcomes by place and circuit. on_change: called after more was measured."""

    places: dict[str, dict[Key, Outcome]] = field(default_factory=dict)
    on_change: Callable[[], None] = lambda: None

    def at(self, place: str) -> dict[Key, Outcome]:
        return self.places.setdefault(place, {})

    @property
    def n_measured(self) -> int:
        return sum(map(len, self.places.values()))

    def arrays(self) -> dict[str, Array]:
        """`PLACE/key` [circuit, 32], and of each field of an outcome `PLACE/FIELD` [circuit, example]."""
        found: dict[str, Array] = {}
        for place, outcomes in self.places.items():
            if outcomes:
                found[f"{place}/key"] = np.frombuffer(b"".join(outcomes), np.uint8).reshape(len(outcomes), -1)
                for part in fields(Outcome):
                    found[f"{place}/{part.name}"] = np.stack([getattr(one, part.name) for one in outcomes.values()])
        return found

    def restore(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """The inverse of `arrays`."""
        for name, keys in arrays.items():
            place, _, what = name.rpartition("/")
            if what == "key":
                columns = {part.name: arrays[f"{place}/{part.name}"] for part in fields(Outcome)}
                known = self.at(place)
                for i, key in enumerate(keys):
                    known[key.tobytes()] = Outcome(**{part: column[i] for part, column in columns.items()})
