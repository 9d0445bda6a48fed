"""Real tokenizers, small and made on the spot, that behave like those of well-known models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from acdc.tasks import country_capital, docstring, gendered_pronoun, greater_than, ioi, people, successor
from acdc.tasks import subject_verb_agreement as sva

KINDS = ("gpt2_like", "gemma_like", "words_only")


def corpus() -> Iterator[str]:
    """All that the tasks say, so that a vocabulary trained on it has their words."""
    texts = [*country_capital.SENTENCES.values(), *gendered_pronoun.SENTENCES.values(), *ioi.SENTENCES.values()]
    texts += [*greater_than.SENTENCES.values(), *sva.SENTENCES.values(), *successor.SENTENCES.values()]
    texts += [docstring.FUNCTION.replace("KEYWORD", keyword) for keyword in docstring.KEYWORDS.values()]
    for text in texts:
        yield "".join(part.split("{")[0] for part in text.split("}"))
    words = [*people.MEN, *people.WOMEN, *ioi.PLACES, *ioi.OBJECTS, *greater_than.NOUNS, *gendered_pronoun.NOUNS]
    words += [*country_capital.CAPITALS, *country_capital.CAPITALS.values(), *docstring.WORDS, "he", "she"]
    words += [word for word_class in successor.CLASSES for word in word_class.words]
    words += [form for forms in (*sva.NOUNS, *sva.VERBS) for form in forms]
    yield from (f"a {word}, {word}" for word in words)
    yield from (f"year 17{ending:02} {century}42" for ending in range(100) for century in range(11, 18))


def gpt2_like() -> PreTrainedTokenizerFast:
    """Bytes, spaces at the front of words, two-digit tokens, no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\d{2}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def gemma_like() -> PreTrainedTokenizerFast:
    """Marked spaces, single digits, a BOS that encode adds, an unknown token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"[^\w▁]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=8000, special_tokens=["<bos>", "<eos>", "<unk>"], show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def words_only() -> PreTrainedTokenizerFast:
    """Whole words and single digits; spaces are lost, and so is every word that it does not know."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.train_from_iterator(corpus(), trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def characters() -> PreTrainedTokenizerFast:
    """Every byte a token of its own, as rare scripts are in most vocabularies."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


MAKERS = {maker.__name__: maker for maker in (gpt2_like, gemma_like, words_only, characters)}


class WithoutOffsets:
    """A tokenizer as those written in Python are: it cannot tell which characters a token holds."""

    is_fast = False

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {name: maker() for name, maker in MAKERS.items()}


@pytest.fixture
def without_offsets() -> type[WithoutOffsets]:
    return WithoutOffsets


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> PreTrainedTokenizerFast:
    return tokenizers[request.param]
