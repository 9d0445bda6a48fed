"""The user's own pairs: what is used, what is dropped and why, files, chat, and what `check` shows."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest

from acdc.errors import TaskError
from acdc.tasks.checking import check_pairs
from acdc.tasks.custom import build_custom
from acdc.tasks.pair_files import read_pairs
from acdc.tasks.pair_rows import TAKEN, PairRow

GOOD = [
    {
        "clean": f"So {a} is a friend, isn't",
        "corrupt": f"So {b} is a friend, isn't",
        "answers": " he",
        "wrong": [" she"],
    }
    for a, b in (("John", "Mary"), ("James", "Linda"), ("Robert", "Susan"), ("Paul", "Karen"), ("Mark", "Emily"))
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def gemma(tokenizers):
    return tokenizers["gemma_like"]


@pytest.fixture
def gpt2(tokenizers):
    return tokenizers["gpt2_like"]


def build(tokenizer, rows, **changes):
    return build_custom(tokenizer, rows, **{"n_search": 4, "n_held_out": 2, **changes})


def reasons(tokenizer, *rows):
    """Why each of `rows` is dropped when put after the good ones."""
    dropped = build(tokenizer, [*GOOD, *rows]).dropped
    return {drop.row - len(GOOD): drop.reason for drop in dropped}


def test_rows_become_pairs_split_by_row(gemma):
    prompts = build(gemma, GOOD)
    assert (len(prompts.search), len(prompts.held_out), prompts.dropped) == (3, 2, ())
    assert {pair.clean_text for pair in prompts.search + prompts.held_out} == {row["clean"] for row in GOOD}
    for pair in prompts.search + prompts.held_out:
        assert list(pair.clean) == gemma.encode(pair.clean_text)
        assert [gemma.decode(list(tokens)) for tokens in (*pair.answers, *pair.wrong)] == [" he", " she"]
    assert prompts == build(gemma, [PairRow(**{**row, "answers": (" he",), "wrong": (" she",)}) for row in GOOD])


def test_rows_of_a_group_stay_on_one_side(gemma):
    rows = [{**row, "group": "ab"[i % 2]} for i, row in enumerate(GOOD)]
    for seed in range(5):
        prompts = build(gemma, rows, seed=seed)
        assert prompts.search
        assert prompts.held_out
        assert not {pair.group for pair in prompts.search} & {pair.group for pair in prompts.held_out}


def test_prompts_are_taken_from_the_groups_in_turn(gemma):
    rows = [{**row, "group": group} for row, group in zip(GOOD, "aaabb", strict=True)]
    prompts = build(gemma, rows, n_search=4, n_held_out=0)
    wanted = [GOOD[i]["clean"] for i in (0, 3, 1, 4)]
    assert [pair.clean_text for pair in prompts.search] == wanted


def test_rows_of_a_single_group_cannot_be_split(gemma):
    with pytest.raises(TaskError, match="two groups are needed"):
        build(gemma, [{**row, "group": "all"} for row in GOOD])


def test_single_group_is_enough_where_nothing_is_held_out(gemma):
    prompts = build(gemma, [{**row, "group": "all"} for row in GOOD], n_search=9, n_held_out=0)
    assert (len(prompts.search), prompts.held_out) == (len(GOOD), ())
    with pytest.raises(TaskError, match=r"too few usable rows: 0 of 1\n"):
        build(gemma, [{**GOOD[0], "answers": " he", "wrong": " he"}], n_held_out=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"corrupt": "So Mary is a friend of Linda, isn't"}, "they must agree in length"),
        ({"corrupt": None}, "`corrupt` is missing"),
        ({"clean": "So Ben is a friend, isn't", "corrupt": "So Ben is a friend, isn't"}, "are the same"),
        ({"clean": ""}, "clean is empty"),
        ({"answers": [""]}, "an empty answer"),
        ({"answers": []}, "it has no answers"),
        ({"wrong": [" he"]}, "is both an answer and a wrong answer"),
        ({"wrong": [" he was"]}, "begins with the other"),
        ({"clean": "So Tom is a friend, isn't ", "answers": "he"}, "move it to the beginning of the answer"),
        ({"spans": {"x": [3, 900]}}, "span 'x' [3, 900] holds no token"),
        ({"spans": {"x": [5, 5]}}, "holds no token"),
        ({"clean": [{"role": "user", "content": "Hi"}]}, "has no chat template"),
        ({}, "the same prompts as row 1"),
    ],
)
def test_an_unusable_row_is_dropped_with_its_number_and_reason(gpt2, change, reason):
    found = reasons(gpt2, {**GOOD[0], **change})
    assert list(found) == [1]
    assert reason in found[1]


@pytest.mark.parametrize("corrupt", [None, "So Ben is a friend of Linda, isn't", "So Ben is a friend, isn't"])
def test_where_no_corrupt_prompt_is_needed_the_clean_one_stands_in_for_what_does_not_fit(gpt2, corrupt):
    row = {**GOOD[0], "clean": "So Ben is a friend, isn't", "corrupt": corrupt}
    prompts = build(gpt2, [*GOOD, row], needs_corrupt=False, n_search=9, n_held_out=0)
    assert prompts.dropped == ()
    *given, pair = prompts.search
    assert (pair.corrupt, pair.corrupt_text) == (pair.clean, pair.clean_text)
    assert given == list(build(gpt2, GOOD, n_search=9, n_held_out=0).search)  # theirs fit and are kept
    with pytest.raises(TaskError, match="too few"):
        build(gpt2, [row], n_held_out=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"corrupt": ""}, "corrupt is empty"),
        ({"corrupt": [{"role": "user", "content": "Hi"}]}, "has no chat template"),
        ({"corrupt": None, "clean": GOOD[1]["clean"], "answers": [""]}, "an empty answer"),
    ],
)
def test_what_else_is_wrong_with_a_row_is_told_where_no_corrupt_prompt_is_needed_too(gpt2, change, reason):
    (dropped,) = build(gpt2, [*GOOD, {**GOOD[0], **change}], needs_corrupt=False).dropped
    assert reason in dropped.reason


def test_prompts_without_corrupt_ones_are_told_apart_by_their_text(gemma):
    row = {**GOOD[0], "corrupt": None}
    (dropped,) = build(gemma, [*GOOD, row, row], needs_corrupt=False).dropped
    assert (dropped.row, dropped.reason) == (7, "the same prompts as row 6")


def test_text_that_a_tokenizer_loses_is_a_reason(gemma):
    assert "no token for a part" in reasons(gemma, {**GOOD[0], "clean": "So 日本 is a friend, isn't"})[1]


def test_bytes_of_another_script_are_only_a_question_of_length(gpt2):
    assert "agree in length" in reasons(gpt2, {**GOOD[0], "clean": "So 日本 is a friend, isn't"})[1]


def test_strict_refuses_and_names_every_unusable_row(gemma):
    rows = [*GOOD, {**GOOD[0], "answers": [""]}, {**GOOD[1], "wrong": [" he"]}]
    with pytest.raises(TaskError) as refusal:
        build(gemma, rows, strict=True)
    assert [fault.where for fault in refusal.value.faults] == ["row 6", "row 7"]


def test_too_few_usable_rows_are_an_error_that_gives_the_reasons(gemma):
    with pytest.raises(TaskError, match="too few usable rows: 1 of 2") as refusal:
        build(gemma, [GOOD[0], {**GOOD[1], "answers": [""]}])
    assert "an empty answer" in refusal.value.faults[0].message


def test_answers_may_be_several_and_of_several_tokens(gpt2):
    rows = [{**row, "answers": [" he", " he was wanted", " he"], "wrong": [" she", " her"]} for row in GOOD]
    pair = build(gpt2, rows).search[0]
    assert [gpt2.decode(list(tokens)) for tokens in pair.answers] == [" he", " he was wanted"]
    assert len(pair.answers[1]) > 1
    assert pair.answers[1] == tuple(gpt2.encode(pair.clean_text + " he was wanted")[len(pair.clean) :])


@pytest.mark.parametrize("kind", ["gpt2_like", "gemma_like"])
def test_spans_of_characters_become_spans_of_tokens(tokenizers, without_offsets, kind):
    rows = [{**row, "spans": {"name": [3, row["clean"].index(" is")], "both": [0, 5]}} for row in GOOD]
    for tokenizer in (tokenizers[kind], without_offsets(tokenizers[kind])):
        for pair in build(tokenizer, rows).search:
            start, stop = pair.roles["name"]
            assert tokenizer.decode(list(pair.clean[start:stop])).strip() == pair.clean_text.split()[1]
            assert pair.roles["both"][1] == stop
            assert pair.roles["end"] == (len(pair.clean) - 1, len(pair.clean))


def test_characters_of_several_tokens_get_all_of_them(tokenizers, without_offsets):
    tokenizer = tokenizers["characters"]
    text = "Zoë 日本"
    rows = [{"clean": text + x, "corrupt": "Zoë 本日" + x, "answers": "a", "spans": {"last": [5, 6]}} for x in "xyz"]
    for form in (tokenizer, without_offsets(tokenizer)):
        for pair in build(form, rows).search:
            start, stop = pair.roles["last"]
            assert tokenizer.decode(list(pair.clean[start:stop])) == "本"


def test_chat_is_rendered_by_the_template_with_one_bos(tokenizers):
    gemma = type(tokenizers["gemma_like"])(
        tokenizer_object=tokenizers["gemma_like"].backend_tokenizer,
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=TEMPLATE.replace("<{{ m['role'] }}>", "friend").replace("<assistant>", "friend"),
    )
    rows = [
        {
            "clean": [{"role": "user", "content": f"{a} was"}],
            "corrupt": [{"role": "user", "content": f"{b} was"}],
            "answers": " he",
            "spans": {"name": [0, len(a)]},
        }
        for a, b in (("John", "Mary"), ("Paul", "Karen"), ("Mark", "Emily"))
    ]
    gemma.backend_tokenizer.add_special_tokens(["\n"])
    pair = build(gemma, rows).search[0]
    assert pair.clean_text.endswith("was\nfriend")
    assert pair.clean.count(gemma.bos_token_id) == 1
    start, stop = pair.roles["name"]
    assert gemma.decode(list(pair.clean[start:stop])).strip() == pair.clean_text.split()[1]
    begun = [{**row, "clean": [*row["clean"], {"role": "assistant", "content": "so"}]} for row in rows]
    begun = [
        {**row, "corrupt": [*row["corrupt"], {"role": "assistant", "content": "so"}], "spans": {}} for row in begun
    ]
    assert build(gemma, begun).search[0].clean_text.endswith("friend so")


def test_swapping_takes_another_prompt_of_the_group_with_other_answers(gpt2):
    names = {"a": (("John", " he"), ("Mary", " she")), "b": (("Paul", " he"), ("Karen", " she"), ("Mark", " he"))}
    rows = [
        {"clean": f"So {name} is a friend, isn't", "answers": answer, "group": group}
        for group, members in names.items()
        for name, answer in members
    ]
    prompts = build(gpt2, rows, corruption="swap_within_group")
    assert prompts == build(gpt2, rows, corruption="swap_within_group")
    cleans = {pair.clean: pair for pair in prompts.search + prompts.held_out}
    assert len(cleans) == 5
    for pair in cleans.values():
        partner = cleans[pair.corrupt]
        assert partner.group == pair.group
        assert partner.answers == pair.wrong
        assert partner.answers != pair.answers


def test_swapping_without_groups_keeps_held_out_prompts_out_of_the_search(gpt2):
    rows = [
        {"clean": f"So {name} is a friend, isn't", "answers": answer}
        for pair in (("John", "Mary"), ("Paul", "Karen"), ("Mark", "Emily"), ("James", "Linda"))
        for name, answer in zip(pair, (" he", " she"), strict=True)
    ]
    for seed in range(5):
        prompts = build(gpt2, rows, corruption="swap_within_group", n_search=4, n_held_out=4, seed=seed)
        assert not {p.corrupt for p in prompts.search} & {p.clean for p in prompts.held_out}


def test_a_row_without_a_partner_is_dropped(gpt2):
    rows = [{"clean": row["clean"], "answers": " he", "group": "g"} for row in GOOD]
    with pytest.raises(TaskError, match="too few usable rows") as refusal:
        build(gpt2, [*rows, {"clean": "So", "answers": " she", "group": "h"}], corruption="swap_within_group")
    assert all("has as many tokens and other answers" in fault.message for fault in refusal.value.faults)


@pytest.mark.parametrize("form", ["list", "lines"])
def test_files_are_json_lists_or_lines(tmp_path, form, gemma):
    path = tmp_path / "pairs"
    path.write_text(json.dumps(GOOD) if form == "list" else "\n\n".join(map(json.dumps, GOOD)) + "\n")
    rows = read_pairs(path)
    assert rows[0] == PairRow(GOOD[0]["clean"], GOOD[0]["corrupt"], (" he",), (" she",))
    assert build(gemma, rows) == build(gemma, GOOD)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ('{"clean": "a"\n{"clean": "b", "answers": "c"}\n{x', ["row 1", "row 3"]),
        ('[{"clean": "a"}, 3, {"clean": 4, "answers": "b", "colour": 1}]', ["row 1", "row 2", "row 3", "row 3"]),
        ('[{"clean": "a", "answers": [1], "spans": {"x": [1]}, "group": 3}]', ["row 1"] * 3),
        ('[{"clean": [{"role": "robot", "content": "x"}], "answers": "b"}]', ["row 1"]),
        ('[{"clean": "a", "answers": "b", "spans": {"all": [0, 1], "end": [0, 1]}}]', ["row 1"]),
        ("[1, 2", []),
        ("\n", []),
    ],
)
def test_faults_of_a_file_are_told_together_by_row(tmp_path, text, faults):
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(TaskError) as refusal:
        read_pairs(path)
    assert [fault.where for fault in refusal.value.faults] == faults


def test_names_of_spans_that_mean_something_already_are_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"clean": "a", "answers": "b", "spans": {"verb": [0, 1], "end": [0, 1]}}')
    with pytest.raises(TaskError, match="`spans` has names that are taken: 'end' is the last token of every prompt"):
        read_pairs(path)


def test_the_page_on_custom_prompts_says_which_names_are_taken():
    page = Path(__file__).resolve().parents[2] / "docs" / "howto" / "custom-prompts.md"
    _, _, said = page.read_text(encoding="utf-8").partition("names are taken: ")
    assert set(re.findall(r"`(\w+)`", said.partition("|")[0])) == set(TAKEN)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"nothing\.json: cannot be read"):
        read_pairs(tmp_path / "nothing.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="not UTF-8"):
        read_pairs(tmp_path / "bytes.json")


def check(tokenizer, *rows):
    return check_pairs(tokenizer, [*GOOD, *rows], n_search=4, n_held_out=2)


def test_check_shows_tokens_bos_and_alignment(gemma):
    report = check(gemma)
    row = report.rows[0]
    assert report.tokenizer_adds_bos
    assert row.begins_with_bos
    assert "".join(view.text for view in row.clean[1:]) == GOOD[0]["clean"]
    assert [(row.clean[i].text, row.corrupt[i].text) for i in row.differs] == [(" John", " Mary")]
    assert report.n_usable == len(GOOD)
    assert {row.half for row in report.rows} == {"search", "held_out"}


def test_check_suggests_a_leading_space_that_saves_tokens(gpt2):
    row = check(gpt2, {**GOOD[0], "clean": "Was it", "corrupt": "Then it", "answers": "Mary", "wrong": []}).rows[-1]
    (answer,) = row.answers
    assert (answer.other_form, answer.other_form_tokens) == (" Mary", 1)
    assert len(answer.tokens) != 1
    assert any("write 'Mary' as ' Mary': 1 token instead of" in text for text in row.suggestions)


def suggestions(tokenizer, **fields):
    return (
        check(tokenizer, {**GOOD[0], "clean": "So the cat is", "corrupt": "So the dog is", **fields})
        .rows[-1]
        .suggestions
    )


def test_check_suggests_a_leading_space_where_the_next_word_begins_with_one(gpt2):
    assert suggestions(gpt2, answers="he", wrong=" she") == (
        "write 'he' as ' he': 1 token, which is how a next word begins",
    )
    assert suggestions(gpt2, answers=" he", wrong=" she") == ()
    goes_on = {"clean": "From 17", "corrupt": "From 18", "answers": "32", "wrong": "11"}
    quoted = {"clean": "She said (", "corrupt": "He said (", "answers": "he", "wrong": "she"}
    for fields in (goes_on, quoted):
        assert not any(said.startswith("write") for said in suggestions(gpt2, **fields))


def test_check_suggests_to_leave_out_a_space_at_an_answers_end(gpt2):
    (said,) = suggestions(gpt2, answers=" big ", wrong=" bad")
    assert said == "write ' big ' as ' big': the model would have to say the space at its end too"


def test_check_says_which_words_make_the_difference_in_length(tokenizers):
    """No opening before the shorter prompt: it would move all of its tokens to other places than their counterparts."""
    said = suggestions(tokenizers["characters"], clean="Mary was", corrupt="Old Ann was")
    assert said == ("use words of equal length: 'Mary' is 4 tokens, 'Old Ann' is 7 tokens",)
    said = suggestions(tokenizers["characters"], clean="A was", corrupt="A man was")
    assert said == (
        "only corrupt has these words: 'man ' is 4 tokens; leave them out, or give the other prompt as many in their "
        "place",
    )


@pytest.mark.parametrize("n_groups", [0, 1, 2])
def test_check_calls_too_few_what_cannot_be_built(gpt2, n_groups):
    rows = [{**row, "group": f"g{number % n_groups}"} for number, row in enumerate(GOOD) if n_groups]
    assert check_pairs(gpt2, rows, n_search=4, n_held_out=2).to_dict()["is_enough"] == (n_groups == 2)
    with contextlib.nullcontext() if n_groups == 2 else pytest.raises(TaskError, match="too few usable rows"):
        build(gpt2, rows)


def test_check_agrees_with_what_is_built_and_turns_into_json(gemma):
    bad = {**GOOD[0], "answers": [""]}
    report = check(gemma, bad).with_metrics({1: 0.5})
    prompts = build(gemma, [*GOOD, bad])
    assert [row.pair for row in report.rows if row.half == "search"] == list(prompts.search)
    assert ["; ".join(row.reasons) for row in report.rows if row.reasons] == [prompts.dropped[0].reason]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["rows"][0]["metric"] == 0.5
    assert data["rows"][5]["is_usable"] is False
