"""Real tokenizers, small and made on the spot, that behave like those of well-known models."""

from __future__ import annotations

from typing import Any

import pytest
from task_words import corpus, words_only
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

KINDS = ("gpt2_like", "gemma_like", "words_only")


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
