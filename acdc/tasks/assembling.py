"""From sentences to a set of prompts: token ids, roles, checks, and the split into searched and held-out groups.

A task offers, for each of its groups, a stream of candidates. The set takes them in turn from group to group, so that
every group has its share, and passes over what the tokenizer cannot express and what it has already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from acdc.errors import Fault, TaskError
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import Pair, PromptSet, Span, Tokenizer, Tokens
from acdc.tasks.templates import Rendered

PATIENCE = 300  # candidates of one group in a row that may be passed over before the group counts as used up


@dataclass(frozen=True)
class Draft:
    """A pair still as text. roles: the fields whose places are recorded (`end` is always). changed: the fields in
    which clean and corrupt may differ."""

    group: str
    clean: Rendered
    corrupt: Rendered
    answers: tuple[Tokens, ...]
    wrong: tuple[Tokens, ...]
    roles: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Misfit:
    """A candidate that this tokenizer cannot express, and why."""

    reason: str


Candidate = Pair | Misfit
Stream = Callable[[str, Random], Iterator[Candidate]]  # (group, generator) -> its candidates, finite or not


def check_corruption(task: str, corruption: str, known: Sequence[str]) -> None:
    """Raises TaskError for a corruption that the task has not."""
    if corruption not in known:
        raise TaskError(f"task {task!r} has no corruption {corruption!r}; it has: {', '.join(known)}")


def refuse(task: str, tokenizer: Tokenizer, faults: Sequence[Fault]) -> None:
    """Raises TaskError with all `faults`, if there are any."""
    if faults:
        name = type(tokenizer).__name__
        raise TaskError(
            f"this model's tokenizer ({name}, {len(tokenizer)} tokens) cannot express task {task!r}; "
            "choose another task or model",
            faults,
        )


def answer_tokens(encoder: Encoder, text: str, answers: Sequence[str]) -> tuple[Tokens, ...] | Misfit:
    """The single tokens of `answers` after `text`."""
    found = [encoder.continuation(text, answer) for answer in answers]
    for answer, tokens in zip(answers, found, strict=True):
        if tokens is None or len(tokens) != 1:
            return Misfit(f"{answer!r} is not one token after {text[-30:]!r}")
    return tuple(tokens for tokens in found if tokens is not None)


def assemble(encoder: Encoder, draft: Draft) -> Candidate:
    """Encode a draft. What comes out is aligned: same length, same role spans, different only in what was changed."""
    clean, corrupt = encoder.prompt(draft.clean.text), encoder.prompt(draft.corrupt.text)
    if encoder.has_unknown(draft.clean.text) or encoder.has_unknown(draft.corrupt.text):
        return Misfit(f"the tokenizer has no token for a part of {draft.clean.text!r}")
    if len(clean) != len(corrupt):
        return Misfit(f"{len(clean)} tokens clean, {len(corrupt)} corrupt: {draft.clean.text!r}")
    fields = dict.fromkeys((*draft.roles, *draft.changed))
    spans = {field: encoder.span(draft.clean.text, *draft.clean.ranges[field]) for field in fields}
    if spans != {field: encoder.span(draft.corrupt.text, *draft.corrupt.ranges[field]) for field in fields}:
        return Misfit(f"clean and corrupt do not align: {draft.clean.text!r}")
    found = {field: span for field, span in spans.items() if span is not None}
    differs = {i for i in range(len(clean)) if clean[i] != corrupt[i]}
    allowed = {i for field in draft.changed if field in found for i in range(*found[field])}
    if len(found) < len(spans) or not differs or not differs <= allowed:
        return Misfit(f"clean and corrupt differ in other places than {', '.join(draft.changed)}: {draft.clean.text!r}")
    roles: dict[str, Span] = {role: found[role] for role in draft.roles}
    return Pair(
        clean=clean,
        corrupt=corrupt,
        answers=draft.answers,
        wrong=draft.wrong,
        group=draft.group,
        roles={**roles, "end": (len(clean) - 1, len(clean))},
        clean_text=draft.clean.text,
        corrupt_text=draft.corrupt.text,
    )


def split_groups(
    groups: Sequence[str], *, n_search: int, n_held_out: int, rng: Random
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Groups to search on and groups to hold out, in proportion to the prompts wanted, at least one each; all groups to
    search on where nothing is to be held out."""
    assert len(groups) > 1, "a task needs two groups to hold one out"
    shuffled = list(groups)
    rng.shuffle(shuffled)
    if not n_held_out:
        return tuple(shuffled), ()
    share = n_held_out / (n_search + n_held_out)
    n_out = min(max(round(len(groups) * share), 1), len(groups) - 1)
    return tuple(shuffled[n_out:]), tuple(shuffled[:n_out])


def fill(
    task: str,
    corruption: str,
    groups: Sequence[str],
    stream: Stream,
    *,
    n_search: int,
    n_held_out: int,
    seed: int,
) -> PromptSet:
    """Both halves of a task. Raises TaskError where the streams run dry before there are enough prompts."""
    # Seeded by text: the same on every machine. The corruption stays out of it, so that the clean prompts are the same.
    searched, held_out = split_groups(
        groups, n_search=n_search, n_held_out=n_held_out, rng=Random(f"{seed}/{task}/groups")
    )
    halves, faults = [], []
    for where, chosen, wanted in (("search", searched, n_search), ("held-out", held_out, n_held_out)):
        streams = [stream(group, Random(f"{seed}/{task}/{group}")) for group in chosen]
        pairs, misfits = _take(streams, wanted)
        halves.append(pairs)
        if len(pairs) < wanted:
            faults.append(Fault(f"{where} prompts", _too_few(len(pairs), wanted, misfits)))
    if faults:
        raise TaskError(f"task {task!r} cannot make enough prompts with this model's tokenizer", faults)
    return PromptSet(task=task, corruption=corruption, search=halves[0], held_out=halves[1])


def _take(streams: Sequence[Iterator[Candidate]], wanted: int) -> tuple[tuple[Pair, ...], Counter[str]]:
    """`wanted` different pairs, one stream after the other in turn, and why candidates were passed over."""
    taken: dict[tuple[Tokens, Tokens], Pair] = {}
    misfits: Counter[str] = Counter()
    alive = list(streams)
    while alive and len(taken) < wanted:
        for stream in tuple(alive):
            if len(taken) == wanted:
                break
            pair = _next_new(stream, taken, misfits)
            if pair is None:
                alive.remove(stream)
            else:
                taken[pair.clean, pair.corrupt] = pair
    return tuple(taken.values()), misfits


def _next_new(
    stream: Iterator[Candidate], taken: dict[tuple[Tokens, Tokens], Pair], misfits: Counter[str]
) -> Pair | None:
    for _ in range(PATIENCE):
        candidate = next(stream, None)
        if candidate is None:
            return None
        if isinstance(candidate, Misfit):
            misfits[candidate.reason] += 1
        elif (candidate.clean, candidate.corrupt) not in taken:
            return candidate
    return None


def _too_few(made: int, wanted: int, misfits: Counter[str]) -> str:
    reason = f"; passed over most often: {misfits.most_common(1)[0][0]}" if misfits else ""
    way_out = f"ask for {made} or fewer" if made else "choose another task or model"
    return f"{made} of the {wanted} asked for can be made, {way_out}{reason}"
