"""What a tokenizer makes of text: BOS, prompts, answers that follow a prompt, and where characters land in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

from acdc.tasks.prompts import Span, Tokenizer, Tokens


class _FastTokenizer(Protocol):
    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Mapping[str, Any]: ...


class Encoder:
    """A tokenizer as tasks use it. `prefix`: the special tokens its own `encode` puts first (BOS), possibly none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.prefix = _special_prefix(tokenizer)

    def ids(self, text: str) -> Tokens:
        """The tokens of `text` alone, nothing added."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, text: str) -> Tokens:
        """The tokens that a model gets: with BOS where the tokenizer adds one, but never twice."""
        ids = self.ids(text)
        return ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids

    def continuation(self, text: str, answer: str) -> Tokens | None:
        """The tokens of `answer` after `text`; None where the two do not split at their border."""
        head, whole = self.ids(text), self.ids(text + answer)
        return whole[len(head) :] if whole[: len(head)] == head and len(whole) > len(head) else None

    def decode(self, tokens: Tokens) -> str:
        return self.tokenizer.decode(list(tokens))

    def pieces(self, tokens: Tokens) -> tuple[str, ...]:
        """The text of each token on its own."""
        return tuple(self.decode((token,)) for token in tokens)

    def has_unknown(self, text: str) -> bool:
        """Whether a part of `text` is lost: the tokenizer has no token for it."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        return unknown is not None and unknown in self.ids(text)

    def span(self, text: str, start: int, stop: int) -> Span | None:
        """Positions in `prompt(text)` of the tokens that hold any of the characters [start, stop); None where none
        does, or where the tokenizer cannot tell."""
        offsets = self._offsets(text)
        hit = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and a < b]
        if not hit or start >= stop:
            return None
        shift = len(self.prompt(text)) - len(offsets)
        return hit[0] + shift, hit[-1] + 1 + shift

    def _offsets(self, text: str) -> list[Span]:
        """The characters [start, stop) of `text` that each of its tokens holds."""
        if getattr(self.tokenizer, "is_fast", False):
            fast = cast(_FastTokenizer, self.tokenizer)
            found = fast(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            return [(int(start), int(stop)) for start, stop in found]
        return self._decoded_offsets(text)

    def _decoded_offsets(self, text: str) -> list[Span]:
        """The same by decoding longer and longer beginnings: for tokenizers that keep no offsets.

        The tokens of one split character decode to it only together, and each of them gets the whole of it.
        Where the tokenizer does not decode to the text itself nothing can be said: all offsets are empty.
        """
        ids = self.ids(text)
        decoded = self.decode(ids)
        bare = decoded.lstrip()  # decoders add or drop a space in front of everything
        if bare not in text:
            return [(0, 0)] * len(ids)
        shift = text.index(bare) - (len(decoded) - len(bare))
        beginnings = [self.decode(ids[: i + 1]) for i in range(len(ids))]
        ends = [shift + len(part) if decoded.startswith(part) else None for part in beginnings]
        offsets = []
        for i in range(len(ids)):
            start = next((end for end in reversed(ends[:i]) if end is not None), 0)
            stop = next((end for end in ends[i:] if end is not None), len(text))
            offsets.append((max(start, 0), stop))
        return offsets


def _special_prefix(tokenizer: Tokenizer) -> Tokens:
    """What `encode` puts before the text: found by comparing it with and without special tokens."""
    probe = "a"
    bare = tokenizer.encode(probe, add_special_tokens=False)
    full = tokenizer.encode(probe, add_special_tokens=True)
    starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return tuple(full[: next(starts, 0)])
