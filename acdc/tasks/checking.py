"""What a model sees of a user's own pairs: tokens, BOS, answers with and without a space, alignment, repairs.

The metric of each row needs the model: `CheckReport.with_metrics` takes it from a caller that has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from acdc.tasks.custom import GIVEN, prepare_rows
from acdc.tasks.encoding import Encoder
from acdc.tasks.prompts import Pair, Span, Tokenizer, Tokens
from acdc.tasks.row_encoding import EncodedPrompt, EncodedRow


@dataclass(frozen=True)
class TokenView:
    token: int
    text: str


@dataclass(frozen=True)
class AnswerView:
    """tokens: after the prompt, empty where it does not split from it. other_form: the text with its leading space
    taken away, or given one; other_form_tokens: how many tokens that is (0: does not split)."""

    text: str
    is_right: bool
    tokens: tuple[TokenView, ...]
    other_form: str
    other_form_tokens: int


@dataclass(frozen=True)
class RowCheck:
    """differs: positions at which clean and corrupt have different tokens (all beyond the shorter one's end, too).
    pair: what a search would use, None for an unusable row. metric: filled by a caller who has the model."""

    row: int
    group: str
    half: str | None  # search, held_out, None if unusable
    reasons: tuple[str, ...]
    begins_with_bos: bool
    clean: tuple[TokenView, ...]
    corrupt: tuple[TokenView, ...]
    differs: tuple[int, ...]
    roles: Mapping[str, Span]
    answers: tuple[AnswerView, ...]
    suggestions: tuple[str, ...]
    pair: Pair | None
    metric: float | None = None

    @property
    def is_usable(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class CheckReport:
    rows: tuple[RowCheck, ...]
    tokenizer_adds_bos: bool

    @property
    def n_usable(self) -> int:
        return sum(row.is_usable for row in self.rows)

    @property
    def is_enough(self) -> bool:
        """Whether a search can begin: it takes rows to search on and others to hold out."""
        return {"search", "held_out"} <= {row.half for row in self.rows}

    def with_metrics(self, metrics: Mapping[int, float]) -> CheckReport:
        """The same report with the metric of each row, by row number."""
        return replace(self, rows=tuple(replace(row, metric=metrics.get(row.row, row.metric)) for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the pairs, whose content is in the other fields."""
        rows = [
            {**{key: value for key, value in asdict(row).items() if key != "pair"}, "is_usable": row.is_usable}
            for row in self.rows
        ]
        return {
            "rows": rows,
            "n_usable": self.n_usable,
            "is_enough": self.is_enough,
            "tokenizer_adds_bos": self.tokenizer_adds_bos,
        }


def check_pairs(
    tokenizer: Tokenizer,
    rows: Sequence[object],
    *,
    n_search: int,
    n_held_out: int,
    corruption: str = GIVEN,
    seed: int = 0,
) -> CheckReport:
    """Look at every row as `build_custom` with the same arguments would, where corrupt prompts are needed. Raises
    TaskError only where rows are not written as pairs."""
    encoder = Encoder(tokenizer)
    prepared = prepare_rows(
        encoder,
        rows,
        corruption=corruption,
        n_search=n_search,
        n_held_out=n_held_out,
        seed=seed,
        needs_corrupt=True,
    )
    halves = {row.number: "search" for row in prepared.search} | {row.number: "held_out" for row in prepared.held_out}
    checks = tuple(_check_row(encoder, row, halves.get(row.number)) for row in prepared.rows)
    return CheckReport(checks, tokenizer_adds_bos=bool(encoder.prefix))


def _check_row(encoder: Encoder, row: EncodedRow, half: str | None) -> RowCheck:
    clean = row.clean.tokens if row.clean else ()
    corrupt = row.corrupt.tokens if row.corrupt else ()
    longest = max(len(clean), len(corrupt)) if corrupt else 0
    answers = tuple(
        _answer_view(encoder, row.clean, text, is_right)
        for is_right, texts in ((True, row.row.answers), (False, row.row.wrong))
        for text in texts
        if row.clean
    )
    return RowCheck(
        row=row.number,
        group=row.group,
        half=half,
        reasons=row.reasons,
        begins_with_bos=clean[:1] == (encoder.tokenizer.bos_token_id,),
        clean=_views(encoder, clean),
        corrupt=_views(encoder, corrupt),
        differs=tuple(i for i in range(longest) if clean[i : i + 1] != corrupt[i : i + 1]),
        roles=row.roles,
        answers=answers,
        suggestions=(*_answer_repairs(answers, row.clean), *_length_repairs(encoder, row)),
        pair=None if row.reasons else row.pair(),
    )


def _views(encoder: Encoder, tokens: Tokens) -> tuple[TokenView, ...]:
    return tuple(TokenView(token, text) for token, text in zip(tokens, encoder.pieces(tokens), strict=True))


def _answer_view(encoder: Encoder, clean: EncodedPrompt, text: str, is_right: bool) -> AnswerView:
    other = text[1:] if text.startswith(" ") else f" {text}"
    tokens, other_tokens = (encoder.continuation(clean.text, form) or () for form in (text, other))
    return AnswerView(text, is_right, _views(encoder, tokens), other, len(other_tokens))


def _answer_repairs(answers: Sequence[AnswerView], clean: EncodedPrompt | None) -> list[str]:
    if not clean:
        return []
    if clean.text.endswith(" ") and answers:
        return ["end the prompts without a space, and begin every answer with one"]
    repairs = [
        f"write {answer.text!r} as {answer.text.rstrip()!r}: the model would have to say the space at its end too"
        for answer in answers
        if answer.text.strip() and answer.text.endswith(" ")
    ]
    return repairs + [_write_spaced(answer) for answer in answers if _wants_space(answer, clean.text)]


def _wants_space(answer: AnswerView, prompt: str) -> bool:
    """Whether the answer is likely to be a word of its own, which the model says with a space before it."""
    before, first = prompt[-1:], answer.text[:1]
    begins_a_word = (before.isalnum() or before in ",;:.!?") and first.isalnum()
    goes_on = before.isdigit() and first.isdigit()  # as in 17|32
    is_known = 0 < answer.other_form_tokens <= (len(answer.tokens) or answer.other_form_tokens)
    return begins_a_word and not goes_on and is_known


def _write_spaced(answer: AnswerView) -> str:
    n, own = answer.other_form_tokens, len(answer.tokens)
    instead = {0: ", and as it is none that splits from the prompt", n: ", which is how a next word begins"}
    return f"write {answer.text!r} as {answer.other_form!r}: {_tokens(n)}{instead.get(own, f' instead of {own}')}"


def _length_repairs(encoder: Encoder, row: EncodedRow) -> list[str]:
    """Where the lengths differ: the words that make the difference. An opening before the shorter prompt would make
    lengths equal, and every token after it another place than its counterpart's."""
    if not row.clean or not row.corrupt or len(row.clean.tokens) == len(row.corrupt.tokens):
        return []
    sides = zip(("clean", "corrupt"), _differing_middle(row.clean.tokens, row.corrupt.tokens), strict=True)
    said = {name: f"{encoder.decode(tokens)!r} is {_tokens(len(tokens))}" for name, tokens in sides if tokens}
    if len(said) == 2:
        return [f"use words of equal length: {said['clean']}, {said['corrupt']}"]
    ((name, words),) = said.items()
    return [f"only {name} has these words: {words}; leave them out, or give the other prompt as many in their place"]


def _tokens(n: int) -> str:
    return f"{n} token{'s' * (n != 1)}"


def _differing_middle(clean: Tokens, corrupt: Tokens) -> tuple[Tokens, Tokens]:
    """Both without what they begin and end with in common."""
    shortest = min(len(clean), len(corrupt))
    head = next((i for i in range(shortest) if clean[i] != corrupt[i]), shortest)
    room = shortest - head
    tail = next((i for i in range(room) if clean[-1 - i] != corrupt[-1 - i]), room)
    return clean[head : len(clean) - tail], corrupt[head : len(corrupt) - tail]
