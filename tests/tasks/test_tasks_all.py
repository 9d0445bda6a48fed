"""What holds for every task and every tokenizer that can express it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest

from acdc.errors import TaskError
from acdc.tasks import TASKS
from acdc.tasks.assembling import Misfit, fill
from acdc.tasks.prompts import Pair, PromptSet

CASES = [(name, corruption) for name, task in TASKS.items() for corruption in task.corruptions]

# The roles whose tokens a corruption changes; `end` and all else stay.
CHANGED = {
    ("ioi", "abc"): {"IO", "S1", "S2"},
    ("ioi", "s2_io_flip"): {"S2"},
    ("greater_than", "low_start"): {"start"},
    ("gendered_pronoun", "opposite_gender"): {"name"},
    ("subject_verb_agreement", "other_number"): {"subject"},
    ("country_capital", "other_country"): {"country"},
    ("successor", "no_order"): {"first", "second", "third"},
    ("docstring", "random_random"): {"A_def", "B_def", "C_def", "A_doc", "B_doc"},
    ("induction", "break_match"): {"A1"},
}


def build(tokenizer, name, corruption=None, *, n_search=20, n_held_out=10, seed=0) -> PromptSet:
    task = TASKS[name]
    corruption = corruption or task.corruptions[0]
    return task.build(tokenizer, n_search=n_search, n_held_out=n_held_out, corruption=corruption, seed=seed)


def all_pairs(prompts: PromptSet) -> tuple[Pair, ...]:
    return prompts.search + prompts.held_out


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_there_are_as_many_different_prompts_as_asked_for(tokenizer, name, corruption):
    prompts = build(tokenizer, name, corruption, n_search=128, n_held_out=64)
    assert (len(prompts.search), len(prompts.held_out)) == (128, 64)
    assert len({(pair.clean, pair.corrupt) for pair in all_pairs(prompts)}) == 192


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_of_every_group_where_none_are_held_out(tokenizers, name):
    prompts = build(tokenizers["gemma_like"], name, n_search=32, n_held_out=0)
    split = build(tokenizers["gemma_like"], name, n_search=20, n_held_out=10)
    assert (len(prompts.search), prompts.held_out) == (32, ())
    assert {pair.group for pair in prompts.search} == {pair.group for pair in all_pairs(split)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TASKS)
def test_held_out_prompts_share_no_group_with_searched_ones(tokenizers, name, seed):
    prompts = build(tokenizers["gemma_like"], name, n_search=20, n_held_out=10, seed=seed)
    searched, held_out = ({pair.group for pair in half} for half in (prompts.search, prompts.held_out))
    assert len(searched) >= 2
    assert len(held_out) >= 2
    assert not searched & held_out


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_clean_and_corrupt_differ_where_the_corruption_says_and_nowhere_else(tokenizer, name, corruption):
    for pair in all_pairs(build(tokenizer, name, corruption)):
        assert len(pair.clean) == len(pair.corrupt)
        differs = {i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupt, strict=True)) if a != b}
        if (name, corruption) in CHANGED:
            spans = [pair.roles[role] for role in CHANGED[name, corruption]]
            assert differs
            assert differs <= {i for start, stop in spans for i in range(start, stop)}
            assert all(differs & set(range(*span)) for span in spans)


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_tokens_are_what_the_tokenizer_makes_of_the_text(tokenizer, name, corruption):
    for pair in all_pairs(build(tokenizer, name, corruption)):
        if name != "induction":  # whose tokens are drawn, not written
            assert tokenizer.encode(pair.clean_text) == list(pair.clean)
            assert tokenizer.encode(pair.corrupt_text) == list(pair.corrupt)
        assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in pair.clean + pair.corrupt


@pytest.mark.parametrize(("name", "corruption"), CASES)
def test_roles_are_those_announced_and_do_not_overlap(tokenizer, name, corruption):
    for pair in all_pairs(build(tokenizer, name, corruption)):
        assert set(pair.roles) == set(TASKS[name].roles)
        assert pair.roles["end"] == (len(pair.clean) - 1, len(pair.clean))
        covered = [i for start, stop in pair.roles.values() for i in range(start, stop)]
        assert len(covered) == len(set(covered))


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_single_tokens_and_never_wrong_too(tokenizer, name):
    for pair in all_pairs(build(tokenizer, name)):
        assert pair.answers
        assert pair.wrong
        assert all(len(answer) == 1 for answer in pair.answers + pair.wrong)
        assert not set(pair.answers) & set(pair.wrong)


@pytest.mark.parametrize("name", TASKS)
def test_bos_stands_once_in_front_where_encode_adds_it_and_nowhere_else(tokenizers, name):
    with_bos = tokenizers["gemma_like"]
    for pair in all_pairs(build(with_bos, name, n_search=8, n_held_out=4)):
        for prompt in (pair.clean, pair.corrupt):
            assert prompt[0] == with_bos.bos_token_id
            assert prompt.count(with_bos.bos_token_id) == 1
    assert tokenizers["gpt2_like"].bos_token_id is None
    build(tokenizers["gpt2_like"], name, n_search=8, n_held_out=4)


@pytest.mark.parametrize("name", TASKS)
def test_another_seed_gives_other_prompts_and_the_same_seed_the_same(tokenizers, name):
    first, again, other = (build(tokenizers["gpt2_like"], name, n_search=20, n_held_out=10, seed=s) for s in (5, 5, 6))
    assert first == again
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if len(task.corruptions) > 1])
def test_corruptions_of_a_task_share_their_clean_prompts(tokenizers, name):
    sets = [build(tokenizers["gpt2_like"], name, corruption) for corruption in TASKS[name].corruptions]
    assert len({tuple(pair.clean for pair in all_pairs(prompts)) for prompts in sets}) == 1
    assert len({tuple(pair.corrupt for pair in all_pairs(prompts)) for prompts in sets}) == len(sets)


@pytest.mark.parametrize("name", set(TASKS) - {"induction"})
def test_a_tokenizer_without_offsets_gives_the_same_prompts(tokenizers, without_offsets, name):
    for kind in ("gpt2_like", "gemma_like"):
        slow = build(without_offsets(tokenizers[kind]), name, n_search=20, n_held_out=10)
        assert slow == build(tokenizers[kind], name, n_search=20, n_held_out=10)


def test_prompts_do_not_depend_on_hash_seed_or_process(tokenizers, tmp_path):
    tokenizers["gemma_like"].save_pretrained(tmp_path)
    script = (
        "import sys; from transformers import PreTrainedTokenizerFast; from acdc.tasks import TASKS\n"
        "t = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])\n"
        "for task in TASKS.values():\n"
        "    print(task.build(t, n_search=30, n_held_out=10, corruption=task.corruptions[0], seed=3).sha256)\n"
    )
    expected = [build(tokenizers["gemma_like"], name, n_search=30, n_held_out=10, seed=3).sha256 for name in TASKS]
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == expected


def test_the_table_of_tasks_loads_without_torch_transformers_or_pydantic():
    script = (
        "import sys, acdc.tasks, acdc.tasks.custom, acdc.tasks.checking, acdc.tasks.pair_files\n"
        "print([m for m in ('torch', 'transformers', 'pydantic', 'numpy', 'jinja2') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", set(TASKS) - {"greater_than"})
def test_a_tokenizer_of_single_characters_is_refused_with_the_reason(tokenizers, name):
    with pytest.raises(TaskError, match=f"cannot express task '{name}'") as refusal:
        build(tokenizers["characters"], name)
    assert refusal.value.faults


def test_all_that_a_tokenizer_lacks_is_said_at_once(tokenizers):
    with pytest.raises(TaskError) as refusal:
        build(tokenizers["characters"], "gendered_pronoun")
    assert [fault.where for fault in refusal.value.faults] == ["men's names", "women's names", "pronouns"]
    assert "'John' becomes [' ', 'J', 'o', 'h', 'n']" in str(refusal.value)


def test_single_characters_are_enough_for_years(tokenizers):
    assert len(build(tokenizers["characters"], "greater_than").search) == 20


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_corruption_is_refused_by_name(tokenizers, name):
    with pytest.raises(TaskError, match=f"{name!r} has no corruption 'nonsense'; it has: "):
        build(tokenizers["gpt2_like"], name, "nonsense")


def test_asking_for_more_prompts_than_there_are_says_how_many_can_be_had():
    def stream(group, rng):  # for ever the same five, and one that does not fit
        for i in cycle(range(6)):
            pair = Pair(clean=(ord(group), i), corrupt=(ord(group), 9), answers=((1,),), wrong=((2,),), group=group)
            yield pair if i < 5 else Misfit("six is too many")

    assert len(fill("toy", "none", "abc", stream, n_search=10, n_held_out=5, seed=0).search) == 10
    with pytest.raises(TaskError) as refusal:
        fill("toy", "none", "abc", stream, n_search=20, n_held_out=10, seed=0)
    messages = {fault.where: fault.message for fault in refusal.value.faults}
    assert messages["search prompts"].startswith("10 of the 20 asked for can be made, ask for 10 or fewer")
    assert messages["held-out prompts"].startswith("5 of the 10 asked for can be made")
    assert "six is too many" in messages["search prompts"]
