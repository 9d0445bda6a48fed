"""One custom row as a tokenizer sees it: tokens, answers, roles, and every reason why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from acdc.tasks.chat import render_chat
from acdc.tasks.encoding import Encoder
from acdc.tasks.pair_rows import PairRow, Prompt
from acdc.tasks.prompts import Pair, Span, Tokens

Alternatives = tuple[Tokens, ...]


@dataclass(frozen=True)
class EncodedPrompt:
    """tokens: with BOS where the model wants one; of a chat, exactly what its template says."""

    text: str
    tokens: Tokens
    added: int  # tokens before those of `text`


@dataclass(frozen=True)
class EncodedRow:
    """reasons: why the row is unusable, none if it is usable. What could be encoded is there either way.

    corrupt: None where the row has none, or none that could be used and none is needed.
    """

    number: int
    row: PairRow
    clean: EncodedPrompt | None
    corrupt: EncodedPrompt | None
    answers: Alternatives
    wrong: Alternatives
    roles: dict[str, Span]
    reasons: tuple[str, ...]

    @property
    def group(self) -> str:
        return self.row.group if self.row.group is not None else f"row {self.number}"

    def pair(self) -> Pair:
        """The row as a pair; only for a usable row. Without a corrupt prompt its clean one stands in: such a pair is
        for maps that take nothing from the corrupt run."""
        assert self.clean is not None
        corrupt = self.corrupt or self.clean
        return Pair(
            clean=self.clean.tokens,
            corrupt=corrupt.tokens,
            answers=self.answers,
            wrong=self.wrong,
            group=self.group,
            roles=self.roles,
            clean_text=self.clean.text,
            corrupt_text=corrupt.text,
        )


def encode_row(encoder: Encoder, row: PairRow, number: int, *, needs_corrupt: bool) -> EncodedRow:
    """Encode a row and collect all that is wrong with it. Never raises for what the row says.

    needs_corrupt: otherwise a row may have no corrupt prompt, and one of another length or with the clean one's tokens
    is passed over.
    """
    reasons: list[str] = []
    clean = _encode_prompt(encoder, row.clean, "clean", reasons)
    corrupt = None
    if row.corrupt is not None:
        corrupt = _encode_prompt(encoder, row.corrupt, "corrupt", reasons)
    elif needs_corrupt:
        reasons.append(
            "`corrupt` is missing; write one, or ask for the corruption swap_within_group (only maps that add noise or "
            "block attention do without)"
        )
    if clean and corrupt and (misaligned := _misaligned(clean, corrupt)):
        if needs_corrupt:
            reasons += misaligned
        corrupt = corrupt if needs_corrupt else None
    answers: Alternatives = ()
    wrong: Alternatives = ()
    roles: dict[str, Span] = {}
    if clean:
        answers = _encode_answers(encoder, clean, row.answers, "answer", reasons)
        wrong = _encode_answers(encoder, clean, row.wrong, "wrong answer", reasons)
        reasons += _clash_reasons(encoder, answers, wrong)
        roles = _encode_spans(encoder, row, clean, reasons)
    if not row.answers:
        reasons.append("it has no answers")
    return EncodedRow(number, row, clean, corrupt, answers, wrong, roles, tuple(reasons))


def _encode_prompt(encoder: Encoder, prompt: Prompt, which: str, reasons: list[str]) -> EncodedPrompt | None:
    try:
        text = prompt if isinstance(prompt, str) else render_chat(encoder.tokenizer, prompt)
    except ValueError as error:
        reasons.append(f"{which}: {error}")
        return None
    ids = encoder.ids(text)
    tokens = encoder.prompt(text) if isinstance(prompt, str) else ids
    if not ids:
        reasons.append(f"{which} is empty")
        return None
    if encoder.has_unknown(text):
        reasons.append(f"{which}: the tokenizer has no token for a part of {text[:60]!r}; write it in other words")
    return EncodedPrompt(text, tokens, len(tokens) - len(ids))


def _misaligned(clean: EncodedPrompt, corrupt: EncodedPrompt) -> list[str]:
    if len(clean.tokens) != len(corrupt.tokens):
        return [f"clean has {len(clean.tokens)} tokens, corrupt {len(corrupt.tokens)}; they must agree in length"]
    if clean.tokens == corrupt.tokens:
        return ["clean and corrupt are the same"]
    return []


def _encode_answers(
    encoder: Encoder, clean: EncodedPrompt, texts: tuple[str, ...], which: str, reasons: list[str]
) -> Alternatives:
    """Each text as tokens after the clean prompt; a text that is given twice counts once."""
    found: dict[Tokens, None] = {}
    for text in texts:
        tokens = encoder.continuation(clean.text, text) if text.strip() else None
        if tokens is not None:
            found[tokens] = None
        elif not text.strip():
            reasons.append(f"an empty {which}: {text!r}")
        else:
            way_out = "move it to the beginning of the answer" if clean.text.endswith(" ") else "begin it with a space"
            seam = "the space at the prompt's end" if clean.text.endswith(" ") else "its beginning"
            reasons.append(f"{which} {text!r} does not split from the prompt: it merges with {seam}; {way_out}")
    return tuple(found)


def clashes(answers: Alternatives, wrong: Alternatives) -> list[tuple[Tokens, Tokens]]:
    """Right and wrong answers of which one begins with the other: its probability is part of the other's."""
    return [
        (right, other)
        for right in answers
        for other in wrong
        if right[: min(len(right), len(other))] == other[: min(len(right), len(other))]
    ]


def _clash_reasons(encoder: Encoder, answers: Alternatives, wrong: Alternatives) -> list[str]:
    return [
        f"{encoder.decode(right)!r} is both an answer and a wrong answer"
        if right == other
        else f"one of answer {encoder.decode(right)!r} and wrong answer {encoder.decode(other)!r} begins with the other"
        for right, other in clashes(answers, wrong)
    ]


def _encode_spans(encoder: Encoder, row: PairRow, clean: EncodedPrompt, reasons: list[str]) -> dict[str, Span]:
    """Token spans of the clean prompt by role, `end` among them whatever the row says."""
    content = row.clean if isinstance(row.clean, str) else row.clean[-1].content
    base = clean.text.rfind(content)
    if base < 0 and row.spans:  # templates may trim or rewrite a message
        reasons.append("spans: the chat template changes the last message, so its characters cannot be found again")
        return {}
    roles: dict[str, Span] = {}
    for name, (start, stop) in row.spans.items():
        span = None
        if 0 <= start < stop <= len(content):
            span = encoder.span(clean.text, base + start, base + stop)
        if span is None:
            reasons.append(
                f"span {name!r} [{start}, {stop}] holds no token of the clean text ({len(content)} characters)"
            )
        else:
            shift = clean.added - (len(encoder.prompt(clean.text)) - len(encoder.ids(clean.text)))
            roles[name] = (span[0] + shift, span[1] + shift)
    return {**roles, "end": (len(clean.tokens) - 1, len(clean.tokens))}
