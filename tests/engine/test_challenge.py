"""Challenges: a fragile circuit is told from a sound one, a stopped run ends as if never stopped, controls control."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tiny_transformers import VOCAB, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from acdc.card import challenge_sections
from acdc.challenge import Challenge, Tried
from acdc.challenge_settings import runs_of, settings_of
from acdc.challenging import answers_shuffled, drawn_again, split_as, with_random_weights
from acdc.circuit import Circuit
from acdc.errors import Cancelled, TaskError
from acdc.evaluation.split_half import overlap
from acdc.evaluation.truth import hand_wired
from acdc.from_spec import job_of
from acdc.models.loading import describe_loaded
from acdc.pipeline import run_on
from acdc.progress import Checkpoint, Quiet
from acdc.result import Result
from acdc.spec import parse_job
from acdc.tasks.prompts import Pair, PromptSet


def words_tokenizer(n: int) -> PreTrainedTokenizerFast:
    """w0 … by their numbers."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")


def text(tokens: Any) -> str:
    return " ".join(f"w{int(token)}" for token in tokens)


def induction_rows(n: int = 24) -> list[dict[str, Any]]:
    """x A B y f A -> B, as in the hand-wired model's own prompts."""
    rng, rows = random.Random(0), []
    for i in range(n):
        a, b, c, x, y, f = rng.sample(range(hand_wired.VOCAB), 6)
        clean, corrupt = (x, a, b, y, f, a), (a, x, c, f, y, x)
        rows.append(
            {
                "clean": text(clean),
                "corrupt": text(corrupt),
                "answers": f" w{b}",
                "wrong": f" w{c}",
                "group": f"g{i % 6}",
            }
        )
    return rows


def random_rows(n: int = 24) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {
            "clean": text(rng.choices(range(3, VOCAB), k=5)),
            "corrupt": text(rng.choices(range(3, VOCAB), k=5)),
            "answers": f" w{rng.randrange(3, 20)}",
            "wrong": f" w{rng.randrange(20, VOCAB)}",
            "group": f"g{i % 6}",
        }
        for i in range(n)
    ]


SMALL = {"grid": [0.5], "random_circuits": 2, "band_circuits": 0, "also_under": []}


def loaded_induction():
    return describe_loaded(hand_wired.induction_model(), words_tokenizer(hand_wired.VOCAB))


def on(loaded, spec: dict[str, Any], source: Circuit | None = None, progress=None) -> list[Result]:
    return run_on(loaded, parse_job({**spec, "model": loaded.card.reference}), progress or Quiet(), source)


def challenged(loaded, source: Circuit, progress=None, **asked: Any) -> tuple[Challenge, Circuit | None]:
    spec = parse_job({"kind": "challenge", "circuit": "cir_1", **asked})
    results = {result.key: result for result in run_on(loaded, spec, progress or Quiet(), source)}
    core = results["core"].circuit if "core" in results else None
    return Challenge.from_dict(results["challenge"].data["challenge"]), core


def hypothesis(loaded, edges) -> Circuit:
    task = {"name": "custom", "pairs": induction_rows(), "prompts": 12, "held_out": 12}
    compute = {"dtype": "float64"}
    spec = {"kind": "evaluate", "hypothesis": {"edges": list(edges)}, "task": task, "evaluation": SMALL}
    (result,) = on(loaded, {**spec, "compute": compute})
    assert result.circuit is not None
    return result.circuit


def test_a_circuit_that_is_right_under_one_ablation_only_is_told_by_the_challenge():
    """Under resample the positions that the previous-token head looks by never change; under zero they are missing."""
    loaded = loaded_induction()
    fragile = hypothesis(loaded, hand_wired.INDUCTION_RESAMPLE)
    sound = hypothesis(loaded, hand_wired.INDUCTION_ZERO)
    for circuit in (fragile, sound):
        own = next(point.f for point in circuit.report.kept if point.split == "held_out")
        assert own == pytest.approx(1, abs=0.01), "its own evaluation sees no difference"
    found, _ = challenged(loaded, fragile, vary=["ablation", "groups"], factorial=False)
    assert "ablation zero" in found.fails
    assert "fails under " in found.sentence
    assert "ablation zero" in found.sentence
    held, _ = challenged(loaded, sound, vary=["ablation", "groups"], factorial=False)
    assert "ablation zero" not in held.fails
    assert held.tried[0].holds


def test_a_hypothesis_is_not_searched_again_and_has_random_circuits_as_its_controls():
    loaded = loaded_induction()
    found, core = challenged(loaded, hypothesis(loaded, hand_wired.INDUCTION_ZERO), seeds=1, resamples=1)
    assert (found.n_searches, found.edges, core) == (0, (), None)
    assert [control.name for control in found.controls] == ["matched random circuits"]
    assert found.controls[0].n_hold < len(found.controls[0].told) == 20
    assert {one.jaccard for one in found.tried} == {None}


@pytest.fixture(scope="module")
def loaded_tiny():
    return describe_loaded(tiny("llama", torch.float32), words_tokenizer(VOCAB))


def searched(loaded, method: Any, **more: Any) -> Circuit:
    task = {"name": "custom", "pairs": random_rows(), "prompts": 16, "held_out": 8}
    spec = {"task": task, "method": method, "evaluation": SMALL, **more}
    circuit = on(loaded, spec)[0].circuit
    assert circuit is not None
    return circuit


@pytest.fixture(scope="module")
def found_by_eap(loaded_tiny) -> Circuit:
    return searched(loaded_tiny, "eap", selection={"size": 0.3, "rule": "absolute"})


class Saving(Quiet):
    """Keeps the newest checkpoint, and stops the run after a number of them."""

    def __init__(self, checkpoint: Checkpoint | None = None, stop_after: int | None = None) -> None:
        self.checkpoint, self.left, self.phases = checkpoint, stop_after, list[str]()

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)
        if self.left == 0:
            raise Cancelled("stopped")

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        if self.left is not None:
            self.left -= 1

    def resume(self) -> Checkpoint | None:
        return self.checkpoint


def by_name(found: Challenge) -> dict[str, Tried]:
    return {one.name: one for one in found.tried}


CHALLENGE = {"kind": "challenge", "circuit": "cir_1"}
ASKED = {"seeds": 1, "resamples": 8}


@pytest.fixture(scope="module")
def undisturbed(loaded_tiny, found_by_eap) -> tuple[Challenge, Circuit | None]:
    return challenged(loaded_tiny, found_by_eap, **ASKED)


def test_the_same_search_in_its_own_setting_finds_the_same_circuit(undisturbed, found_by_eap):
    own = undisturbed[0].tried[0]
    assert (own.name, own.kind, own.jaccard) == ("as it was found", "own", 1.0)
    assert own.found_f == own.f
    assert own.f == pytest.approx(next(p.f for p in found_by_eap.report.kept if p.split == "held_out"))


def test_settings_differ_as_their_names_say(undisturbed):
    found = undisturbed[0]
    one = {tried.name for tried in found.tried if tried.kind == "one"}
    assert one == {
        "ablation zero",
        "ablation mean",
        "metric prob_diff",
        "metric answer_logprob",
        "metric kl_divergence",
        "rule signed",
        *(f"prompts drawn again, {i}" for i in range(1, 9)),
    }
    assert {tried.name for tried in found.tried if tried.kind == "factorial"} == {
        "zero, kl_divergence",
        "mean, kl_divergence",
    }
    tried = by_name(found)
    assert tried["metric kl_divergence"].jaccard is None, "eap has no gradient of KL at the clean run"
    assert tried["metric prob_diff"].jaccard is not None
    assert tried["rule signed"].jaccard is None, "the search would be the same"
    assert {one.shares_search_with for one in found.tried} == {""}, "its objective follows the metric"
    assert found.n_searches == 2 + 2 + 8  # ablations, metrics but KL, draws; not the one in its own setting
    assert len({tried.kl_share for tried in found.tried}) > 8


SAME_SEARCHES = {
    # ablations; sender orders or the seed; draws
    "acdc": ({"name": "acdc", "thresholds": [0.01]}, 2 + 2 + 5),
    "edge-pruning": ({"name": "edge-pruning", "steps": 3, "edges": 0.3}, 2 + 1 + 5),
    "information-flow-routes": ("information-flow-routes", 5),
    "eap with an objective": ({"name": "eap", "objective": "logit_diff"}, 2 + 5),
}


@pytest.mark.parametrize("case", SAME_SEARCHES)
def test_a_search_that_several_settings_have_is_made_once_and_counted_once(loaded_tiny, case):
    method, n_searches = SAME_SEARCHES[case]
    selection = {} if case == "acdc" else {"selection": {"size": 0.3, "rule": "absolute"}}
    source = searched(loaded_tiny, method, **selection)
    found, core = challenged(loaded_tiny, source, seeds=1, controls=False)
    runs = runs_of(parse_job(CHALLENGE | {"seeds": 1, "controls": False}), job_of(source), source.selected.rule)
    assert (found.n_searches, core) == (n_searches, None)
    assert runs.searches == n_searches + 1
    assert f"{n_searches} searches are too few to tell what survives" in found.sentence
    sharing = {one.name: one for one in found.tried if one.shares_search_with}
    assert sharing["metric prob_diff"].shares_search_with == "as it was found"
    assert sharing["metric prob_diff"].jaccard == 1
    assert sum(one.found_edges is not None for one in found.tried) == 1 + n_searches + len(sharing)
    for setting in settings_of(parse_job(CHALLENGE), job_of(source), source.selected.rule):
        if setting.name in sharing:  # what the search would have found there
            circuit = on(loaded_tiny, setting.spec.model_dump(mode="json"))[0].circuit
            same = by_name(found)[sharing[setting.name].shares_search_with]
            assert overlap(circuit.kept, source.kept)[0] == sharing[setting.name].jaccard == same.jaccard


def test_a_search_made_before_a_stop_is_not_made_again_after_it(loaded_tiny):
    method = "information-flow-routes"
    source = searched(loaded_tiny, method, selection={"size": 0.3, "rule": "absolute"})
    asked = {"seeds": 1, "resamples": 2, "controls": False}
    first = Saving(stop_after=2)
    with pytest.raises(Cancelled):
        challenged(loaded_tiny, source, first, **asked)
    second = Saving(first.checkpoint)
    found, _ = challenged(loaded_tiny, source, second, **asked)
    assert [sum("information flow" in phase for phase in one.phases) for one in (first, second)] == [1, 2]
    assert found == challenged(loaded_tiny, source, **asked)[0]


def test_another_rule_that_cuts_the_same_circuit_is_no_setting_that_held(loaded_tiny):
    unsigned = searched(loaded_tiny, "information-flow-routes", selection={"size": 0.3, "rule": "absolute"})
    assert (unsigned.scores >= 0).all()
    found, _ = challenged(loaded_tiny, unsigned, vary=["rule"], controls=False, factorial=False)
    other = by_name(found)["rule signed"]
    assert other.skipped == "it cuts the same circuit from the same scores"
    assert other.f is None


def test_what_was_to_be_varied_and_could_not_be_is_told_with_the_reason(loaded_tiny):
    task = {"name": "custom", "pairs": random_rows(), "prompts": 16, "held_out": 3}
    circuit = searched(loaded_tiny, "eap", task=task, selection={"size": 0.3})
    asked = {"vary": ["groups", "prompts", "seed", "order"], "factorial": False, "controls": False}
    found, _ = challenged(loaded_tiny, circuit, **asked)
    assert [one.kind for one in found.tried] == ["own"]
    assert [one.factor for one in found.not_varied] == ["prompts", "seed", "order", "groups"]
    assert found.not_varied[-1].why == "no group has 4 or more held-out prompts"
    assert found.sentence.endswith("not varied: prompts, seed, order, groups")
    said = " ".join(challenge_sections(found)[0].text)
    assert all(f"{one.factor} ({one.why})" in said for one in found.not_varied)


def test_groups_that_are_seen_are_varied(loaded_tiny, found_by_eap):
    found, _ = challenged(loaded_tiny, found_by_eap, vary=["groups"], factorial=False, controls=False, search=False)
    assert {one.kind for one in found.tried} == {"own", "group"}
    assert found.not_varied == ()


def test_a_circuit_cut_from_a_part_of_the_edges_says_so(loaded_tiny):
    of_some = searched(loaded_tiny, {"name": "exact", "receivers": 3}, selection={"size": 5})
    n, all_of_them = of_some.tested.sum(), of_some.graph.n_edges
    assert any(note.startswith(f"{n} of {all_of_them} edges have a score") for note in of_some.provenance.run.notes)


def test_the_core_is_what_nine_in_ten_searches_found(undisturbed, found_by_eap):
    found, core = undisturbed
    assert {one.edge for one in found.edges} == set(found_by_eap.graph.names_of(found_by_eap.kept))
    shares = [one.share for one in found.edges]
    assert shares == sorted(shares, reverse=True)
    assert {round(share * found.n_searches, 6) % 1 for share in shares} == {0}
    wanted = [one.edge for one in found.edges if one.share >= 0.9]
    expected = found_by_eap.graph.connected(found_by_eap.graph.mask_of_edges(wanted))
    assert 0 < len(wanted) < found.n_edges
    assert core is not None
    assert (core.kept == expected).all()
    assert core.n_edges == found.core_edges > 0
    assert core.selected.rule == "core"
    assert "survive" in core.provenance.run.notes[0]
    assert core.report is not None


def test_few_searches_make_no_core(loaded_tiny, found_by_eap):
    found, core = challenged(loaded_tiny, found_by_eap, vary=["groups"], factorial=False, controls=False)
    assert core is None
    assert (found.n_searches, found.core_edges, found.edges) == (0, 0, ())
    assert "survive" not in found.sentence


def test_its_own_setting_is_made_again_only_for_what_is_measured_in_it(loaded_tiny, found_by_eap):
    """For controls, or for a core."""
    for controls in (False, True):
        progress = Saving()
        asked = {"vary": ["rule"], "factorial": False, "controls": controls}
        challenged(loaded_tiny, found_by_eap, progress, **asked)
        prepared = [phase for phase in progress.phases if phase.endswith("parity")]
        assert sum("as it was found" in phase for phase in prepared) == 1
        assert sum("the circuit's own setting" in phase for phase in prepared) == controls


def test_a_checkpoint_of_another_circuits_challenge_is_not_gone_on_with(loaded_tiny, found_by_eap, undisturbed):
    other = searched(loaded_tiny, "eap", selection={"size": 0.5, "rule": "signed"})
    first = Saving(stop_after=3)
    with pytest.raises(Cancelled):
        challenged(loaded_tiny, other, first, **ASKED)
    found, _ = challenged(loaded_tiny, found_by_eap, Saving(first.checkpoint), **ASKED)
    assert found == undisturbed[0]


@pytest.mark.parametrize("stop_after", [1, 4, 17, 19])
def test_a_challenge_that_was_stopped_and_gone_on_with_ends_as_if_never_stopped(
    loaded_tiny, found_by_eap, undisturbed, stop_after
):
    first = Saving(stop_after=stop_after)
    with pytest.raises(Cancelled):
        challenged(loaded_tiny, found_by_eap, first, **ASKED)
    second = Saving(first.checkpoint)
    found, core = challenged(loaded_tiny, found_by_eap, second, **ASKED)
    assert found == undisturbed[0]
    assert (core is None) == (undisturbed[1] is None)
    if core is not None:
        assert (core.kept == undisturbed[1].kept).all()
    assert not any("as it was found" in phase for phase in second.phases)


def test_decisions_of_a_search_are_challenged_at_the_same_threshold_and_by_sender_order(loaded_tiny):
    method = {"name": "acdc", "thresholds": [0.3, 0.0001], "objective": "logit_diff"}
    task = {"name": "custom", "pairs": random_rows(), "prompts": 16, "held_out": 8}
    results = on(loaded_tiny, {"task": task, "method": method, "evaluation": SMALL})
    source = next(r.circuit for r in results if r.key == "threshold=0.0001")
    found, _ = challenged(loaded_tiny, source, vary=["order", "resample"], resamples=1, controls=False)
    assert [one.name for one in found.tried] == [
        "as it was found",
        "prompts drawn again, 1",
        "sender order normal",
        "sender order random",
    ]
    assert found.tried[0].jaccard == 1
    assert all(one.found_edges > 10 for one in found.tried), "the other threshold keeps almost nothing"


def test_a_setting_that_cannot_be_had_is_told_and_not_passed(loaded_tiny):
    rows = [{key: value for key, value in row.items() if key != "wrong"} for row in random_rows()]
    task = {"name": "custom", "pairs": rows, "prompts": 16, "held_out": 8}
    spec = {"task": task, "method": "eap", "metric": "answer_logprob", "evaluation": SMALL, "selection": {"size": 0.3}}
    circuit = on(loaded_tiny, spec)[0].circuit
    found, _ = challenged(loaded_tiny, circuit, vary=["metric"], factorial=False, controls=False, search=False)
    skipped = {one.name: one.skipped for one in found.tried if one.kl_share is None}
    assert set(skipped) == {"metric logit_diff", "metric prob_diff"}
    assert "wrong answers" in skipped["metric prob_diff"]
    assert "more could not be told)" in found.sentence
    assert {one.holds for one in found.tried if one.skipped} == {None}


# -- controls ----------------------------------------------------------------------------------------------------------


def prompt_set(n: int = 14) -> PromptSet:
    """Three prompts in a row have the same answers."""
    pairs = tuple(Pair((i, 1), (i, 2), ((i // 3 + 10,),), ((i // 3 + 30,),), f"g{i}") for i in range(n))
    return PromptSet("t", "c", pairs[: n // 2], pairs[n // 2 :])


def test_shuffled_answers_are_never_a_prompts_own():
    before, after = prompt_set(), answers_shuffled(prompt_set())
    for old, new in zip((*before.search, *before.held_out), (*after.search, *after.held_out), strict=True):
        assert (old.clean, old.corrupt) == (new.clean, new.corrupt)
        assert set(old.answers).isdisjoint(new.answers)
        assert new.wrong[0][0] - new.answers[0][0] == 20, "an answer keeps its own wrong one"


def test_answers_that_all_prompts_share_cannot_be_shuffled():
    """Were they only exchanged, right for wrong, the metric would be the task's own with another sign."""
    pairs = tuple(Pair((i, 1), (i, 2), ((5 + i % 2,),), ((6 - i % 2,),), f"g{i}") for i in range(4))
    with pytest.raises(TaskError, match="share their answers"):
        answers_shuffled(PromptSet("t", "c", pairs, pairs))


def test_other_prompts_stay_on_the_side_of_their_group():
    prompts = prompt_set()
    held_out = ("g0", "g9", "g13")
    split = split_as(prompts, held_out)
    assert {pair.group for pair in split.held_out} == set(held_out)
    assert len(split.search) + len(split.held_out) == 14
    with pytest.raises(TaskError, match="other groups"):
        split_as(prompts, ("h1",))


def test_prompts_drawn_again_are_as_many_and_of_the_same_split():
    before = prompt_set(40)
    draws = [drawn_again(before, seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    for drawn in draws:
        assert len(drawn.search) == len(before.search)
        for pairs, own in ((drawn.search, before.search), (drawn.held_out, before.held_out)):
            assert {pair.clean for pair in pairs} < {pair.clean for pair in own}


def test_a_model_with_random_weights_is_another_of_the_same_kind_and_the_model_stays_as_it_was():
    model = tiny("gpt2", torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first, again, other = (with_random_weights(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {n: p.shape for n, p in first.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    matrices = [name for name, parameter in first.named_parameters() if parameter.ndim > 1]
    for name in matrices:
        own, same, different = (one.get_parameter(name) for one in (first, again, other))
        assert torch.equal(own, same)
        assert not torch.equal(own, different)
        assert not torch.equal(own, before[name])
    assert len(matrices) > 5
    assert not any(parameter.requires_grad for parameter in first.parameters())
