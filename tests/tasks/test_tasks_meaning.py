"""Each task against an independent reading of its sentences: is the right answer right, and the wrong one wrong?"""

from __future__ import annotations

import ast
import calendar
import re
from itertools import pairwise

import pytest

from acdc.tasks import TASKS
from acdc.tasks.people import MEN, WOMEN

NUMBERS = [
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]


def built(tokenizer, name, corruption=None, seed=0):
    task = TASKS[name]
    corruption = corruption or task.corruptions[0]
    prompts = task.build(tokenizer, n_search=64, n_held_out=32, corruption=corruption, seed=seed)
    return [*prompts.search, *prompts.held_out]


def words(tokenizer, alternatives):
    return [tokenizer.decode(list(tokens)).strip() for tokens in alternatives]


def at(tokenizer, pair, role, which="clean"):
    start, stop = pair.roles[role]
    return tokenizer.decode(list(getattr(pair, which)[start:stop])).strip()


def names_in(text):
    return [word for word in re.findall(r"\w+", text) if word in MEN or word in WOMEN]


@pytest.mark.parametrize("corruption", ["abc", "s2_io_flip"])
def test_ioi_answers_the_name_said_once_and_not_the_one_said_twice(tokenizer, corruption):
    for pair in built(tokenizer, "ioi", corruption):
        names = names_in(pair.clean_text)
        assert len(names) == 3
        (once,) = [name for name in names if names.count(name) == 1]
        (twice,) = {name for name in names if names.count(name) == 2}
        assert words(tokenizer, pair.answers) == [once]
        assert words(tokenizer, pair.wrong) == [twice]
        assert [at(tokenizer, pair, role) for role in ("IO", "S1", "S2")] == [once, twice, twice]
        corrupt = names_in(pair.corrupt_text)
        if corruption == "abc":
            assert len({*names, *corrupt}) == 5
        else:
            assert corrupt == [*names[:2], once]


def test_ioi_has_both_orders_of_every_sentence(tokenizers):
    pairs = built(tokenizers["gpt2_like"], "ioi")
    orders = {(pair.group, pair.roles["IO"] < pair.roles["S1"]) for pair in pairs}
    assert len(orders) == 2 * len({pair.group for pair in pairs}) >= 10


def test_greater_than_with_single_digits_rewards_the_ones_digits_above_the_start(tokenizers):
    tokenizer = tokenizers["gemma_like"]
    for pair in built(tokenizer, "greater_than"):
        start, stem = re.fullmatch(r"\D*(\d{4})\D*(\d{3})", pair.clean_text).groups()
        assert 1 <= int(start[3]) <= 8
        assert stem == start[:3]
        assert all(int(stem + digit) > int(start) for digit in words(tokenizer, pair.answers))
        assert all(int(stem + digit) <= int(start) for digit in words(tokenizer, pair.wrong))
        assert len(pair.answers) + len(pair.wrong) == 10
        assert (at(tokenizer, pair, "start"), at(tokenizer, pair, "start", "corrupt")) == (start[3], "0")


def test_greater_than_with_two_digit_tokens_rewards_the_years_above_the_start(tokenizers):
    tokenizer = tokenizers["gpt2_like"]
    for pair in built(tokenizer, "greater_than"):
        start, stem = re.fullmatch(r"\D*(\d{4})\D*(\d{2})", pair.clean_text).groups()
        assert 2 <= int(start[2:]) <= 98
        assert stem == start[:2]
        assert all(int(stem + ending) > int(start) for ending in words(tokenizer, pair.answers))
        assert all(int(stem + ending) <= int(start) for ending in words(tokenizer, pair.wrong))
        assert len(pair.answers) + len(pair.wrong) == 100
        assert at(tokenizer, pair, "start", "corrupt") == "01"


def test_gendered_pronoun_goes_with_the_name(tokenizer):
    for pair in built(tokenizer, "gendered_pronoun"):
        (name,), (other,) = names_in(pair.clean_text), names_in(pair.corrupt_text)
        right, wrong = ("he", "she") if name in MEN else ("she", "he")
        assert (words(tokenizer, pair.answers), words(tokenizer, pair.wrong)) == ([right], [wrong])
        assert (name in MEN) != (other in MEN)
        assert at(tokenizer, pair, "name") == name


def test_no_name_goes_with_both_pronouns():
    assert not set(MEN) & set(WOMEN)
    assert len({*MEN, *WOMEN}) == len(MEN) + len(WOMEN)


def test_verbs_agree_with_the_subject_and_not_with_the_noun_between(tokenizer):
    numbers = set()
    for pair in built(tokenizer, "subject_verb_agreement"):
        subject, attractor = (at(tokenizer, pair, role) for role in ("subject", "attractor"))
        # man and woman end as men and women do
        is_plural, between_is_plural = (
            word.endswith(("s", "en")) and word not in ("man", "woman") for word in (subject, attractor)
        )
        plural, singular = ["are", "were", "have"], ["is", "was", "has"]
        expected = (plural, singular) if is_plural else (singular, plural)
        assert (words(tokenizer, pair.answers), words(tokenizer, pair.wrong)) == expected
        numbers.add((is_plural, between_is_plural))
    assert len(numbers) == 4


def test_capitals_are_those_of_the_country(tokenizer):
    known = {"France": "Paris", "Germany": "Berlin", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid"}
    pairs = built(tokenizer, "country_capital")
    seen = set()
    for pair in pairs:
        country, other = at(tokenizer, pair, "country"), at(tokenizer, pair, "country", "corrupt")
        assert country in pair.clean_text
        assert other in pair.corrupt_text
        if country in known:
            seen.add(country)
            assert words(tokenizer, pair.answers) == [known[country]]
        if other in known:
            assert words(tokenizer, pair.wrong) == [known[other]]
    assert seen


def next_of(word):
    for ring in (list(calendar.day_name), list(calendar.month_name)[1:]):
        if word in ring:
            return ring[(ring.index(word) + 1) % len(ring)]
    return NUMBERS[NUMBERS.index(word) + 1] if word != NUMBERS[-1] else None


def test_successor_answers_what_follows_and_the_corrupt_prompt_has_no_order(tokenizer):
    classes = set()
    for pair in built(tokenizer, "successor"):
        shown = [at(tokenizer, pair, role) for role in ("first", "second", "third")]
        scattered = [at(tokenizer, pair, role, "corrupt") for role in ("first", "second", "third")]
        (answer,), (wrong,) = words(tokenizer, pair.answers), words(tokenizer, pair.wrong)
        assert [next_of(word) for word in shown] == [*shown[1:], answer]
        assert all(next_of(a) != b for a, b in pairwise(scattered))
        assert wrong == next_of(scattered[-1])
        assert wrong not in {*shown, *scattered, answer}
        assert answer not in scattered
        classes.add(shown[0] in NUMBERS or shown[0].endswith("day"))
    assert classes == {True, False}


def test_docstring_answers_the_argument_after_the_documented_ones(tokenizers):
    for kind in ("gpt2_like", "gemma_like"):
        tokenizer = tokenizers[kind]
        for pair in built(tokenizer, "docstring"):
            clean, corrupt = (_parsed(text) for text in (pair.clean_text, pair.corrupt_text))
            arguments, documented = clean
            assert len(arguments) == 6
            at_last = arguments.index(documented[-1])
            assert documented == arguments[at_last - 1 : at_last + 1]
            assert words(tokenizer, pair.answers) == [arguments[at_last + 1]]
            assert {*words(tokenizer, pair.wrong), *words(tokenizer, pair.answers)} == set(arguments)
            assert arguments[at_last + 1] not in corrupt[0]
            assert not {*corrupt[1]} & {*corrupt[0], *arguments}
            assert [at(tokenizer, pair, role) for role in ("A_doc", "B_doc")] == documented


def _parsed(text):
    (function,) = ast.parse(text.replace("\\", "/") + ' x: y\n    """').body
    arguments = [argument.arg for argument in function.args.args]
    assert arguments.pop(0) == "self"
    return arguments, re.findall(r"(\w+): the", text)


@pytest.mark.parametrize("corruption", ["break_match", "other_tokens"])
def test_induction_answers_what_followed_the_last_token_before(tokenizer, corruption):
    for pair in built(tokenizer, "induction", corruption):
        *before, last = pair.clean
        (place,) = [i for i, token in enumerate(before) if token == last]
        assert pair.answers == ((pair.clean[place + 1],),)
        assert pair.wrong[0][0] in pair.clean
        assert pair.clean.count(pair.wrong[0][0]) == 1
        assert pair.roles["A1"] == (place, place + 1)
        assert pair.roles["B1"] == (place + 1, place + 2)
        assert last not in pair.corrupt[:-1]
        assert (pair.answers[0][0] in pair.corrupt) == (corruption == "break_match")
