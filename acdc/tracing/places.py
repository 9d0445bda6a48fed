"""Where in a prompt: the position axis of a map.

position: counted from the beginning; only for prompts of one length.
from_end: -1 is the last token of the prompt, down to the length of the shortest prompt.
role: all tokens of a role (IO, S1, subject, end, ...) changed together.
all: every position at once.

An answer of several tokens is teacher-forced: a row goes on after its prompt. These positions belong to the place
`all`, and to the role `end`, since there the answer is read on; the filling after them changes nothing that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acdc.errors import Fault, TaskError
from acdc.graph import END
from acdc.patch_map import Flags
from acdc.patching.batches import Batch
from acdc.tasks.prompts import Pair, common_roles

PLACES = ("position", "from_end", "role", "all")
EVERYWHERE = "all"


@dataclass(frozen=True)
class Places:
    """kind: one of PLACES. spans: per place and pair, its token positions [start, stop); None: every position."""

    kind: str
    labels: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int] | None, ...], ...]

    def in_batch(self, batch: Batch) -> Flags:
        """[place, row, pos], true at each place's positions; the role `end` goes on to the end of the row."""
        flags = self.in_prompts(batch)
        for place, label in enumerate(self.labels):
            if self.kind == "role" and label == END:
                flags[place] = np.logical_or.accumulate(flags[place], -1)
        return flags

    def in_prompts(self, batch: Batch) -> Flags:
        """The same without the positions of an answer, but for the place `all`."""
        flags = np.zeros((len(self.labels), batch.n_rows, batch.length), dtype=bool)
        for row, pair in enumerate(pair_of_row(batch)):
            for place, spans in enumerate(self.spans):
                span = spans[pair]
                flags[place, row, slice(None) if span is None else slice(*span)] = True
        return flags


def pair_of_row(batch: Batch) -> list[int]:
    """[row]: which pair of the prompt set a row belongs to; an answer of several tokens gives a pair several rows."""
    first = [*batch.first_row.tolist(), batch.n_rows]
    return [pair for i, pair in enumerate(batch.examples) for _ in range(first[i], first[i + 1])]


def make_places(pairs: Sequence[Pair], kind: str, roles: Sequence[str] | None = None) -> Places:
    """The places of a position axis. roles: for kind role, which ones; by default those that every pair has.

    Raises TaskError: absolute positions of prompts that differ in length; a role that a prompt has not.
    """
    lengths = sorted({len(pair.clean) for pair in pairs})
    match kind:
        case "all":
            return Places(kind, (EVERYWHERE,), ((None,) * len(pairs),))
        case "position":
            if len(lengths) > 1:
                raise TaskError(
                    f"position {lengths[0] - 1} means another place in each prompt: lengths go from {lengths[0]} to "
                    f"{lengths[-1]} tokens; take places by role, or from_end"
                )
            numbers = range(lengths[0])
            return Places(kind, tuple(map(str, numbers)), tuple(((i, i + 1),) * len(pairs) for i in numbers))
        case "from_end":
            back = range(lengths[0], 0, -1)
            spans = tuple(tuple((len(p.clean) - i, len(p.clean) - i + 1) for p in pairs) for i in back)
            return Places(kind, tuple(f"-{i}" for i in back), spans)
        case "role":
            return role_places(pairs, common_roles(pairs) if roles is None else roles)
    raise TaskError(f"places {kind!r} are unknown; known are: {', '.join(PLACES)}")


def role_places(pairs: Sequence[Pair], roles: Sequence[str]) -> Places:
    """One place per role; the name `all` stands for every position. Raises TaskError for a role that is missing."""
    faults = []
    for role in roles:
        without = [i + 1 for i, pair in enumerate(pairs) if role not in pair.roles and role != EVERYWHERE]
        if without:
            known = ", ".join(common_roles(pairs)) or "none"
            some = ", ".join(map(str, without[:10]))
            faults.append(Fault(role, f"{len(without)} prompts have no such role ({some}); all have: {known}"))
    if not roles:
        faults.append(Fault("", "the prompts have no role in common: give spans, or take another kind of places"))
    if faults:
        raise TaskError("not every prompt has the places asked for", faults)
    spans = tuple(tuple(None if r == EVERYWHERE else pair.roles[r] for pair in pairs) for r in roles)
    return Places("role", tuple(roles), spans)


def first_changes(batch: Batch) -> npt.NDArray[np.int64]:
    """[row]: the first position at which clean and corrupt tokens differ; under a causal mask the two runs are the same
    before it. The row's length where they do not differ."""
    differs = (batch.clean != batch.corrupt).cpu().numpy()
    return np.where(differs.any(1), differs.argmax(1), batch.length)


def starts_of(where: Flags, first_change: npt.NDArray[np.int64], *, is_causal: bool) -> npt.NDArray[np.int64]:
    """The first position at which a change has an effect; the row's length where it has none.

    where: [cell, row, pos], the positions that are changed. first_change: [row], the first position at which the two
    runs differ; under a causal mask they agree before it. Returns [cell, row].
    """
    length = where.shape[-1]
    effective = where & (np.arange(length) >= first_change[:, None]) if is_causal else where
    begins = effective.argmax(-1) if is_causal else np.zeros(where.shape[:2], dtype=np.int64)
    return np.asarray(np.where(effective.any(-1), begins, length))
