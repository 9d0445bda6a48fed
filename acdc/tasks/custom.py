"""The user's own pairs as a task: encode every row, drop or refuse what is unusable, split by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from acdc.errors import Fault, TaskError
from acdc.tasks.assembling import check_corruption
from acdc.tasks.encoding import Encoder
from acdc.tasks.pair_rows import parse_rows
from acdc.tasks.prompts import Dropped, PromptSet, Tokenizer, Tokens
from acdc.tasks.row_encoding import EncodedRow, clashes, encode_row

NAME = "custom"
GIVEN, SWAP = "given", "swap_within_group"
CORRUPTIONS = (GIVEN, SWAP)


def build_custom(
    tokenizer: Tokenizer,
    rows: Sequence[object],
    *,
    n_search: int,
    n_held_out: int,
    corruption: str = GIVEN,
    seed: int = 0,
    strict: bool = False,
    needs_corrupt: bool = True,
) -> PromptSet:
    """Prompts from rows (`PairRow`, or mappings with its fields), at most `n_search` and `n_held_out` of them.

    Fewer rows than asked for are shared out in the same proportion. Rows of a group stay on one side; a row without a
    group is a group of its own. With `swap_within_group` a row's corrupt prompt is the clean one of another row of its
    group (of its side, where no row names a group) with as many tokens and other answers; where a row has no wrong
    answers it gets those of its partner. Unless `needs_corrupt`, a given corrupt prompt that is missing, of another
    length or the same is no reason to drop a row: the clean one stands in for it.

    Raises TaskError where rows are not written as pairs, where `strict` and any row is unusable, and where too few are
    left to search on one and hold one out.
    """
    check_corruption(NAME, corruption, CORRUPTIONS)
    prepared = prepare_rows(
        Encoder(tokenizer),
        rows,
        corruption=corruption,
        n_search=n_search,
        n_held_out=n_held_out,
        seed=seed,
        needs_corrupt=needs_corrupt,
    )
    dropped = tuple(Dropped(row.number, "; ".join(row.reasons)) for row in prepared.rows if row.reasons)
    faults = [Fault(f"row {drop.row}", drop.reason) for drop in dropped]
    if strict and faults:
        raise TaskError(f"{len(faults)} of {len(rows)} rows cannot be used with this model's tokenizer", faults)
    if not prepared.search or (n_held_out and not prepared.held_out):
        needed = "; two groups are needed, since one is held out" if n_held_out else ""
        raise TaskError(f"too few usable rows: {len(rows) - len(dropped)} of {len(rows)}{needed}", faults)
    sides = (_groups_in_turn(side) for side in (prepared.search, prepared.held_out))
    search, held_out = (tuple(row.pair() for row in side) for side in sides)
    return PromptSet(NAME, corruption, search[:n_search], held_out[:n_held_out], dropped)


def _groups_in_turn(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """One row of every group, then the second of each, so that any number from the beginning is of many groups."""
    rounds: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append(rounds[row.group])
        rounds[row.group] += 1
    return [row for _, row in sorted(zip(turns, rows, strict=True), key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Prepared:
    """rows: all of them in their order. search, held_out: the usable ones; either may be empty."""

    rows: tuple[EncodedRow, ...]
    search: tuple[EncodedRow, ...]
    held_out: tuple[EncodedRow, ...]


def prepare_rows(
    encoder: Encoder,
    rows: Sequence[object],
    *,
    corruption: str,
    n_search: int,
    n_held_out: int,
    seed: int,
    needs_corrupt: bool,
) -> Prepared:
    """Encode, split and (if asked for) swap, with the reasons against every row that cannot be used.

    Raises TaskError where rows are not written as pairs.
    """
    encoded = {row.number: row for row in _encode_rows(encoder, rows, corruption, needs_corrupt)}
    usable = [row for row in encoded.values() if not row.reasons]
    held_out = _held_out_groups(usable, n_search, n_held_out, seed)
    search_side = [row for row in usable if row.group not in held_out]
    held_out_side = [row for row in usable if row.group in held_out]
    if corruption == SWAP:
        has_groups = any(row.row.group is not None for row in usable)
        for side in (search_side, held_out_side):
            side[:] = [_swap(row, tuple(side), has_groups, Random(f"{seed}/{NAME}/{row.number}")) for row in side]
            encoded.update({row.number: row for row in side})
    search, held = (tuple(row for row in side if not row.reasons) for side in (search_side, held_out_side))
    return Prepared(tuple(encoded.values()), search, held)


def _encode_rows(
    encoder: Encoder, rows: Sequence[object], corruption: str, needs_corrupt: bool
) -> Iterator[EncodedRow]:
    """Every row; one that repeats the prompts of a usable row before it is not usable."""
    is_swapped = corruption == SWAP
    seen: dict[tuple[Tokens, Tokens | None], int] = {}
    for number, row in enumerate(parse_rows(rows), start=1):
        own = replace(row, corrupt=None) if is_swapped else row
        encoded = encode_row(encoder, own, number, needs_corrupt=needs_corrupt and not is_swapped)
        if encoded.clean and not encoded.reasons:
            first = seen.setdefault((encoded.clean.tokens, encoded.corrupt.tokens if encoded.corrupt else None), number)
            if first != number:
                encoded = replace(encoded, reasons=(f"the same prompts as row {first}",))
        yield encoded


def _held_out_groups(rows: Sequence[EncodedRow], n_search: int, n_held_out: int, seed: int) -> frozenset[str]:
    """Whole groups, of which the rows come as near to the wanted share as they can without exceeding it."""
    sizes = Counter(row.group for row in rows)
    if len(sizes) < 2 or not n_held_out:
        return frozenset()
    wanted = max(1, min(n_held_out, round(len(rows) * n_held_out / (n_search + n_held_out))))
    shuffled = list(sizes)
    Random(f"{seed}/{NAME}/groups").shuffle(shuffled)
    held_out: list[str] = []
    for group in shuffled:
        n_rows = sum(sizes[chosen] for chosen in held_out)
        if n_rows + sizes[group] <= wanted and len(held_out) < len(sizes) - 1:
            held_out.append(group)
    return frozenset(held_out or [min(shuffled, key=sizes.__getitem__)])  # every group may be larger than the share


def _swap(row: EncodedRow, side: Sequence[EncodedRow], has_groups: bool, rng: Random) -> EncodedRow:
    """The row with a partner's clean prompt as its corrupt one, or with the reason why it has none."""
    partners = [
        other
        for other in side
        if (other.group == row.group or not has_groups) and other.number != row.number and _may_swap(row, other)
    ]
    if not partners:
        where = f"group {row.group!r}" if has_groups else "its half of the rows"
        return replace(row, reasons=(f"no other row of {where} has as many tokens and other answers",))
    partner = rng.choice(partners)
    return replace(row, corrupt=partner.clean, wrong=row.wrong or partner.answers)


def _may_swap(row: EncodedRow, other: EncodedRow) -> bool:
    assert row.clean is not None
    assert other.clean is not None
    same_length = len(other.clean.tokens) == len(row.clean.tokens)
    return same_length and not clashes(row.answers, other.answers)
