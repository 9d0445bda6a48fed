"""What the built-in tasks say, and a tokenizer that knows their words."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from acdc.tasks import country_capital, docstring, gendered_pronoun, greater_than, ioi, people, successor
from acdc.tasks import subject_verb_agreement as sva


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


def words_only() -> PreTrainedTokenizerFast:
    """Whole words and single digits; spaces are lost, and so is every word that it does not know."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.train_from_iterator(corpus(), trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
