"""Exact ACDC at speed against its oracle: one edge and one whole masked forward at a time, in float64."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peak_memory import peak_bytes
from stopping import Keeps
from test_gradients_and_masks import make_problem
from tiny_files import Recorder
from tiny_transformers import MAKERS, random_pairs, tiny
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.discovery import acdc, candidates, exact
from acdc.discovery import search as search_module
from acdc.discovery.acdc import attributed, largest_edges, search_acdc
from acdc.discovery.candidates import Candidates
from acdc.discovery.chain import MOST_OVERHEAD, OVERHEAD_ROWS, Odds, Pace, chain_length
from acdc.discovery.exact import score_exact
from acdc.discovery.ledger import Ledger
from acdc.discovery.oracle import decide_again
from acdc.discovery.problem import Found, Problem
from acdc.discovery.rehearsal import rehearse_acdc
from acdc.discovery.search import Search
from acdc.discovery.walk import Rule, Walk, receiver_order, sender_order
from acdc.errors import ModelError, OutOfMemory, TaskError
from acdc.graph import BoolMatrix
from acdc.metrics import METRICS, Metric
from acdc.models.architectures import wrap
from acdc.patching.ablation import Resample, Zero, ablation_of
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.patching.needs import Needs
from acdc.patching.suffix import Rooms
from acdc.progress import Checkpoint, Quiet
from acdc.spec import FOUND_WITH
from acdc.tasks.prompts import Pair

MEMORY = 2**30
SMALL = 2**18  # bytes, of tensors that grow with nothing
SHORT, LONG = 3, 60  # searches of each architecture: make test, make test-long


def search(problem: Problem, **arguments: Any) -> Found:
    return search_acdc(problem, Quiet(), **{"thresholds": [0.02], "rule": "signed", **arguments})[0]


def disagreements(
    problem: Problem, found: Found, rule: Rule, share: float, start: BoolMatrix | None = None, **order: Any
) -> tuple[int, int]:
    """Edges on which the oracle decides otherwise, and edges compared: a share of all, drawn at random."""
    assert found.kept is not None
    graph = problem.t.graph
    only = np.random.default_rng(0).random(graph.legal.shape) < share
    begun = graph.legal if start is None else start
    decisions = list(decide_again(problem, begun, found.kept, rule, only=only, **order))
    assert all(found.tested[d.sender, d.receiver] for d in decisions)
    assert np.allclose([d.cost for d in decisions], [found.scores[d.sender, d.receiver] for d in decisions], atol=1e-5)
    return sum(d.is_cut == found.kept[d.sender, d.receiver] for d in decisions), len(decisions)


def drawn_problem(data: st.DataObject, name: str, ablation: str, metric: str) -> Problem:
    """Random weights and prompts: of several lengths, alike up to some position, answers of one token or two. Learned
    positions may be a sender of their own, and edges split by position role."""
    has_positions = name in ("gpt2", "toy")
    t = wrap(tiny(name, seed=data.draw(st.integers(0, 99))), split_position=has_positions and data.draw(st.booleans()))
    if t.is_causal and data.draw(st.booleans()):
        t = t.split_by(["first"])
    lengths, n_alike = data.draw(st.sampled_from([(5,), (5, 6), (4, 7, 7)])), data.draw(st.integers(0, 3))
    answers = data.draw(st.sampled_from([(3,), (3, 4)] if t.is_causal else [(3,)]))
    pairs = [
        replace(pair, clean=(*pair.corrupt[:n_alike], *pair.clean[n_alike:]), answers=(answers,))
        for pair in random_pairs(3, lengths, seed=data.draw(st.integers(0, 99)))
    ]
    batches = make_batches(t, pairs, 512, MEMORY)
    values = ablation_of(ablation, t, batches, mean_per_role=True)
    return Problem(t, prepare(t, batches, values), METRICS[metric], MEMORY)


@pytest.mark.parametrize("name", sorted(MAKERS))
@settings(
    max_examples=LONG if settings.get_current_profile_name() == "long" else SHORT,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_every_decision_is_the_oracles(name: str, data: st.DataObject) -> None:
    ablation = data.draw(st.sampled_from(["resample", "zero", "mean"]))
    metric = data.draw(st.sampled_from(["kl_divergence", "logit_diff", "prob_diff", "answer_logprob", "accuracy"]))
    threshold = data.draw(st.one_of(st.floats(1e-4, 0.5), st.floats(1e-7, 1e-4), st.just(0.0), st.floats(-0.1, 0.0)))
    warm_start = data.draw(st.sampled_from([None, None, 0.6]) if metric != "accuracy" else st.none())
    is_absolute = data.draw(st.booleans())
    order = data.draw(st.sampled_from(["reverse", "normal", "random"]))
    problem = drawn_problem(data, name, ablation, metric)
    graph = problem.t.graph
    start = None if warm_start is None else largest_edges(graph, attributed(problem, Quiet()), warm_start)
    found = search(
        problem,
        thresholds=[threshold],
        rule="absolute" if is_absolute else "signed",
        sender_order=order,
        order_seed=3,
        warm_start=warm_start,
    )
    rule = Rule(threshold, is_absolute)
    wrong, compared = disagreements(problem, found, rule, 1.0, start, order=order, order_seed=3)
    assert (wrong, compared) == (0, int(found.tested.sum()))
    assert found.facts["objective"] == pytest.approx(found.facts["objective_by_masked_forward"], abs=1e-10)


@pytest.mark.usefixtures("timeless")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "gpt-neox"])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.01])
def test_in_float32_too_every_decision_is_the_oracles(name: str, threshold: float) -> None:
    """With edges that cost exactly nothing among them: under zero ablation those that lead from nothing."""
    t = wrap(tiny(name, torch.float32))
    batches = make_batches(t, random_pairs(8, (5, 6)), 512, MEMORY)
    problem = Problem(t, prepare(t, batches, Zero()), METRICS["kl_divergence"], MEMORY)
    found = search(problem, thresholds=[threshold])
    assert found.facts["row_error"] > 0
    assert found.facts["nearest_by_row"] > found.facts["row_error"]
    assert disagreements(problem, found, Rule(threshold), 0.3)[0] == 0


def test_the_oracle_notices_a_wrong_decision() -> None:
    problem = make_problem("llama", lengths=(5,), n=2)
    found = search(problem)
    assert found.kept is not None
    sender, receiver = (int(i) for i in np.argwhere(found.tested)[0])
    found.kept[sender, receiver] ^= True
    decisions = decide_again(
        problem, problem.t.graph.legal, found.kept, Rule(0.02), only=only_at(problem, sender, receiver)
    )
    assert [d.is_cut == found.kept[d.sender, d.receiver] for d in decisions] == [True]


def only_at(problem: Problem, sender: int, receiver: int) -> BoolMatrix:
    only = np.zeros_like(problem.t.graph.legal)
    only[sender, receiver] = True
    return only


def candidates_of(problem: Problem) -> Candidates:
    return Candidates(problem, problem.t.graph.legal, Rooms(problem.t), Ledger(MEMORY, problem.n_examples))


def multi_token_problem() -> Problem:
    """Answers of one, two and three tokens: rows that end at different places, several reads an example."""
    t = wrap(tiny("llama"))
    answers = [((3,), (4, 5)), ((6, 7, 8),), ((9,), (10,)), ((11, 12),)]
    pairs = [
        Pair(pair.clean, pair.corrupt, answer, ((13,), (14, 15)), pair.group)
        for pair, answer in zip(random_pairs(4, (5, 7)), answers, strict=True)
    ]
    batches = make_batches(t, pairs, 512, MEMORY)
    return Problem(t, prepare(t, batches, Resample()), METRICS["logit_diff"], MEMORY)


def test_answers_of_several_tokens_are_decided_as_by_the_oracle() -> None:
    problem = multi_token_problem()
    found = search(problem)
    assert disagreements(problem, found, Rule(0.02), 0.3)[0] == 0


def test_a_common_beginning_is_computed_once_and_changes_nothing() -> None:
    """Clean and corrupt agree up to position 3: nothing before it can change."""
    t = wrap(tiny("gemma3"))
    pairs = [
        Pair((*pair.corrupt[:3], *pair.clean[3:]), pair.corrupt, pair.answers, pair.wrong, pair.group)
        for pair in random_pairs(3, (7,))
    ]
    problem = Problem(t, prepare(t, make_batches(t, pairs, 512, MEMORY), Resample()), METRICS["kl_divergence"], MEMORY)
    (suffix,) = candidates_of(problem)._suffixes
    assert (suffix.at.wide, suffix.at.narrow, suffix.at.end) == (3, 6, 7)
    assert disagreements(problem, search(problem, thresholds=[0.001]), Rule(0.001), 0.5)[0] == 0


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox", "toy-bidirectional"])
def test_any_rows_at_any_receiver_are_whole_masked_forwards(name: str) -> None:
    problem = make_problem(name, metric="kl_divergence", lengths=(5, 6), n=3)
    graph, rng = problem.t.graph, np.random.default_rng(1)
    kept, needs = graph.legal.copy(), Needs(graph)
    rows = candidates_of(problem)

    def measured(mask: BoolMatrix) -> Any:
        examples = [e for p in problem.prompts for e in p.batch.examples]
        return problem.measure(torch.from_numpy(mask[None].astype(np.float64)))[0][examples]

    for receiver in receiver_order(graph):
        senders = sender_order(graph, receiver, "reverse", 0)
        will_go = [bool(b) for b in rng.random(len(senders)) < 0.6]
        trial = kept.copy()
        if needs.of_receiver(receiver):
            rows.open(receiver, senders)
            values = rows.values(will_go)
            for place, (sender, goes) in enumerate(zip(senders, will_go, strict=True)):
                one = trial.copy()
                one[sender, receiver] = False
                if place % 3 == 0:
                    assert np.allclose(values[place], measured(one), atol=1e-10)
                trial = one if goes else trial
            rows.decide(will_go)
            is_changed = bool((kept & ~trial).any())
            kept[:] = trial
            needs.decide(receiver, kept[:, receiver])
            value = rows.leave(kept[:, receiver])
            assert (value is not None) == is_changed
            assert value is None or np.allclose(value, measured(kept), atol=1e-10)
        else:
            kept[senders, receiver] = False
            rows.skip(receiver, kept[:, receiver])
    assert 0 < kept.sum() < graph.n_edges


@pytest.mark.parametrize("length", [1, 3, 1000])
def test_the_length_of_a_chain_changes_no_decision(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("gpt2", metric="kl_divergence", lengths=(5, 6), n=3)
    expected = search(problem, thresholds=[0.003])
    monkeypatch.setattr(search_module, "chain_length", lambda stays, overhead: length)
    found = search(problem, thresholds=[0.003])
    assert np.array_equal(found.kept, expected.kept)
    assert np.allclose(found.scores, expected.scores, atol=1e-6)


AT: dict[str, Any] = {"thresholds": [1e-4], "rule": "signed"}


def test_a_rehearsal_tells_time_and_memory_within_the_budget_of_the_search() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 6), n=4)
    found = rehearse_acdc(problem, Quiet(), **AT)
    assert found.seconds > 0
    assert 0 < found.edges <= problem.t.graph.n_edges
    assert len(found.ms_per_edge) > 2
    search(replace(problem, memory_bytes=2 * found.memory_bytes))
    with pytest.raises(OutOfMemory, match="raise it"):
        rehearse_acdc(replace(problem, memory_bytes=found.memory_bytes // 2), Quiet(), **AT)


def test_a_rehearsal_is_of_the_search_that_is_asked_for() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5,), n=12)
    whole = rehearse_acdc(problem, Quiet(), **AT)
    assert whole.prompts == 12
    assert rehearse_acdc(problem, Quiet(), **AT, validation=3).prompts == 9
    staged = rehearse_acdc(problem, Quiet(), **AT, stages=[8])
    assert staged.prompts == 8
    assert staged.memory_bytes > whole.memory_bytes  # both stages stand beside each other


@pytest.mark.parametrize("share", [0.001, 0.2, 1.0])
def test_a_rehearsal_of_a_warm_start_counts_the_edges_that_are_tested(share: float) -> None:
    """Where all are kept, these are known beforehand; a single edge may not lead to the logits."""
    problem = make_problem("llama", metric="kl_divergence", lengths=(5,), n=8)
    rehearsed = rehearse_acdc(problem, Quiet(), thresholds=[-math.inf], rule="signed", warm_start=share)
    assert rehearsed.edges == search(problem, thresholds=[-math.inf], warm_start=share).facts["edges_tested"]


def test_a_rehearsal_of_an_objective_without_a_gradient_expects_every_edge() -> None:
    problem = make_problem("llama", metric="accuracy", lengths=(5,), n=8)
    assert rehearse_acdc(problem, Quiet(), **AT).edges == problem.t.graph.n_edges


def test_a_rehearsal_refuses_what_the_search_refuses() -> None:
    problem = make_problem("llama", lengths=(5,), n=4)
    with pytest.raises(TaskError, match="sets 4 prompts aside"):
        rehearse_acdc(problem, Quiet(), thresholds=[0.1, 0.2], rule="signed", validation=4)


def test_a_rehearsal_expects_fewer_tests_of_larger_thresholds() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5,), n=8)

    def n_tests(*thresholds: float, rule: str = "signed") -> int:
        return rehearse_acdc(problem, Quiet(), thresholds=thresholds, rule=rule).edges

    logits = int(problem.t.graph.n_senders_before[-1])
    assert n_tests(math.inf) == logits
    assert n_tests(-math.inf) == problem.t.graph.n_edges
    some, many = n_tests(0.3), n_tests(0.03)
    assert logits < some < many
    assert n_tests(0.3, 0.03) == some + many
    assert n_tests(0.03, rule="absolute") > many
    of_two, of_all = (
        rehearse_acdc(problem, Quiet(), thresholds=(), rule="signed", edges=n).edges
        for n in (2, problem.t.graph.n_edges)
    )
    assert of_two < of_all == problem.t.graph.n_edges


def test_chains_are_longer_where_a_batch_costs_more_beside_its_rows() -> None:
    cheap, dear = paced([(n, 0.5 + n) for n in (4, 8, 5)]), paced([(n, 20.0 + n) for n in (4, 8, 5)])
    assert (cheap, dear) == (pytest.approx(0.5), pytest.approx(20.0))
    stays = [0.02] * 200
    assert chain_length(stays, cheap) < chain_length(stays, dear)


def paced(batches: list[tuple[int, float]]) -> float:
    """batches: rows and seconds. What a batch costs beside its rows, in rows."""
    pace = Pace()
    for rows, seconds in batches:
        pace.took(rows, seconds)
    return pace.overhead


def test_a_pace_follows_what_batches_take_now() -> None:
    before, now = [(n, 50.0 + n) for n in (4, 8)] * 50, [(n, 2.0 * n + 6.0) for n in (4, 8)] * 50
    assert paced([*before, *now]) == pytest.approx(3.0, rel=0.5)
    assert paced([*now, (4, 1000.0), *now]) == pytest.approx(3.0, rel=0.5)  # one that had to wait


def test_a_pace_says_nothing_new_of_batches_alike() -> None:
    assert paced([(8, 3.0), (8, 2.0), (9, 4.0)]) == OVERHEAD_ROWS
    assert paced([(4, 3.0), (8, 2.0)]) == MOST_OVERHEAD  # as if rows cost nothing


@given(
    stays=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=7),
    overhead=st.sampled_from([0.25, 1.0, 4.0, 30.0]),
)
def test_the_length_of_a_chain_decides_the_most_edges_in_the_least_time(stays: list[float], overhead: float) -> None:
    """Against all that can become of the edges, one after the other."""
    rates = []
    for n in range(1, len(stays) + 1):
        decided = 0.0
        for outcome in itertools.product([False, True], repeat=n):
            chance = math.prod(p if kept else 1 - p for p, kept in zip(stays, outcome, strict=False))
            wrong = [i for i, kept in enumerate(outcome) if kept != (stays[i] >= 0.5)]
            decided += chance * (wrong[0] + 1 if wrong else n)
        rates.append(decided / (overhead + n))
    assert rates[chain_length(stays, overhead) - 1] == pytest.approx(max(rates))


def test_a_chain_ends_with_the_edge_that_is_hard_to_guess() -> None:
    assert chain_length([*[0.001] * 10, 0.4, *[0.001] * 10], overhead=1.0) == 11


def test_edges_are_expected_to_stay_as_often_as_others_of_their_size_have() -> None:
    guess = np.array([[4.0, 4.1, 3.9], [0.01, 0.011, 0.0], [-4.0, -4.1, -3.9]], np.float32)
    none = np.zeros(guess.shape, bool)
    odds = Odds(guess, none, none)
    (before,) = odds.of([0], 2)
    for receiver in (0, 1):
        odds.saw(0, receiver, stays=True)
        odds.saw(1, receiver, stays=False)
        odds.saw(2, receiver, stays=False)
    large, unknown, harmful = odds.of([0, 1, 2], 2)
    assert large > 2 * before
    assert large > unknown > harmful
    tested, kept = none.copy(), none.copy()
    tested[:, :2], kept[0, :2] = True, True
    assert Odds(guess, kept, tested).of([0, 1, 2], 2) == [large, unknown, harmful]  # a search that goes on


@pytest.mark.usefixtures("timeless")
def test_a_better_guess_of_the_costs_saves_time_and_changes_no_decision() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 6), n=3)
    legal = problem.t.graph.legal
    costs, nothing = search(problem, thresholds=[0.003]).scores, np.zeros(legal.shape, np.float32)
    noise = np.random.default_rng(0).normal(size=legal.shape).astype(np.float32)
    taken, kept = [], []
    for guess in (costs, nothing, noise, acdc.guessed_costs(problem, Quiet())):
        walk = Walk.begin(legal, problem.t.dtype)
        Search([[problem]], Rule(0.003), walk, legal.copy(), guess).run(lambda done, name: None, lambda: None)
        taken.append(walk.counts["rows"] + 2 * walk.counts["batched_evaluations"])
        kept.append(walk.kept)
    assert all(np.array_equal(one, kept[0]) for one in kept)
    assert taken[0] < min(taken[1:])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_attribution_guesses_which_edges_cost_much(name: str) -> None:
    problem = make_problem(name, metric="kl_divergence", lengths=(5, 6), n=3)
    found, guess = search(problem, thresholds=[0.003]), acdc.guessed_costs(problem, Quiet())
    ranks = [np.argsort(np.argsort(np.abs(of[found.tested]))) for of in (found.scores, guess)]
    assert np.corrcoef(*ranks)[0, 1] > 0.4


def test_a_search_whose_objective_has_no_gradient_begins_without_a_guess() -> None:
    problem = make_problem("gpt2", metric="accuracy", lengths=(5,), n=2)
    assert not acdc.guessed_costs(problem, Quiet()).any()
    assert search(problem, thresholds=[0.003]).facts["edges_tested"] > 0


def test_a_guess_that_fails_is_told_and_ends_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("gpt2", metric="kl_divergence", lengths=(5,), n=2)
    expected, told = search(problem, thresholds=[0.003]), Recorder()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room for the gradient")

    monkeypatch.setattr(acdc, "score_eap_ig_inputs", full)
    (found,) = search_acdc(problem, told, thresholds=[0.003], rule="signed")
    assert any("no room for the gradient" in line for line in told.logs)
    assert np.array_equal(found.kept, expected.kept)


@pytest.mark.parametrize(("name", "answers"), [("gpt2", [(3,)]), ("llama", [(3,)]), ("llama", [(3, 4, 5), (6, 7)])])
def test_a_guess_stays_within_the_memory_of_its_search(name: str, answers: list[tuple[int, ...]]) -> None:
    t = wrap(tiny(name))
    pairs = [replace(pair, answers=tuple(answers)) for pair in random_pairs(16, (24,))]
    prompts = prepare(t, make_batches(t, pairs, 512, MEMORY), Resample())
    problem = Problem(t, prompts, METRICS["kl_divergence"], MEMORY)
    for limit in (2**30, 2**23, 2**22):
        bounded = replace(problem, memory_bytes=limit)
        assert peak_bytes(lambda of=bounded: acdc.guessed_costs(of, Quiet())) < limit + SMALL  # type: ignore[misc]
    assert acdc.guessed_costs(bounded, Quiet()).any()
    assert not acdc.guessed_costs(replace(problem, memory_bytes=1000), Quiet()).any()


def test_at_a_further_threshold_attribution_guesses_what_the_neighbour_has_not_tested() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 6), n=3)
    runs = acdc._Runs([problem], Quiet(), is_absolute=False, order=search_module.Order(), warm_start=None, stages=())
    walk = runs.run(0.3).walk
    assert 0 < walk.tested.sum() < problem.t.graph.n_edges
    runs.runs.append(acdc._Run(0.03, walk))
    guess, attributed = runs._guess(1), acdc.guessed_costs(problem, Quiet())
    assert np.array_equal(guess[walk.tested], walk.costs[walk.tested])
    assert np.array_equal(guess[~walk.tested], attributed[~walk.tested])
    assert guess[~walk.tested].any()


def test_rows_beyond_what_a_batch_gains_from_wait_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("gpt2", metric="kl_divergence", lengths=(5,), n=2)
    expected = search(problem, thresholds=[0.003])
    monkeypatch.setattr(candidates, "TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(candidates, "ROWS_AT_ONCE", 1)
    found = search(problem, thresholds=[0.003])
    assert found.facts["batched_evaluations"] == found.facts["edges_tested"] == found.facts["rows"]
    assert expected.facts["batched_evaluations"] < expected.facts["edges_tested"]
    assert np.array_equal(found.kept, expected.kept)


def test_devices_that_share_the_rows_change_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 6), n=12)
    alone = search(problem, thresholds=[0.003], stages=[8])
    real, given = Candidates.values, dict[int, int]()

    def values(self: Candidates, will_go: Any, of: range | None = None) -> Any:
        if self.problem.n_examples == 8:
            given[id(self)] = given.get(id(self), 0) + len(of or will_go)
        return real(self, will_go, of)

    monkeypatch.setattr(Candidates, "values", values)
    shared = search(problem, thresholds=[0.003], stages=[8], pool=[problem, problem])
    assert len(given) == 3
    assert min(given.values()) > 50
    assert np.array_equal(shared.kept, alone.kept)
    assert np.allclose(shared.scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize(("name", "stages"), [("llama", [8]), ("gemma2", [])])
def test_a_search_stays_within_its_memory_budget_which_changes_no_decision(name: str, stages: list[int]) -> None:
    """About the smallest budget that is not refused: each refusal names what it would have taken so far."""
    problem = make_problem(name, metric="kl_divergence", lengths=(5, 9), n=10)
    expected = search(problem, stages=stages).kept
    refusals, budget, found = 0, 1, list[Found]()
    while True:
        small = replace(problem, memory_bytes=budget)
        try:
            peak = peak_bytes(lambda of=small: found.append(search(of, stages=stages)))  # type: ignore[misc]
        except OutOfMemory as error:
            needed = int(re.findall(r"needs ([\d,]+) bytes", error.message)[0].replace(",", ""))
            assert needed > budget
            refusals, budget = refusals + 1, needed * 11 // 10
        else:
            break
    assert refusals > 0
    assert np.array_equal(found[0].kept, expected)
    assert peak <= budget


def test_what_other_visits_left_is_given_back_where_a_tile_would_not_fit_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "ROWS_AT_ONCE", 1000)  # as many as there is memory for
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 9), n=10)
    graph, rooms, ledger = problem.t.graph, Rooms(problem.t), Ledger(2_500_000, problem.n_examples)
    rows, given_back, left_before = Candidates(problem, graph.legal, rooms, ledger), 0, 0
    for receiver in receiver_order(graph):
        senders = sender_order(graph, receiver, "reverse", 0)
        rows.open(receiver, senders)
        given_back += rooms.n_bytes < left_before
        tile = min(len(senders), ledger.left // rows._bytes_of_row) * rows._bytes_of_row
        assert ledger.limit - ledger.left + rooms.n_bytes + tile <= ledger.limit
        rows.values([True] * len(senders))
        left_before = rooms.n_bytes
        rows.leave(graph.legal[:, receiver])
    assert given_back


def test_exact_scores_stay_within_their_memory_budget_which_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 9), n=5)
    (expected,) = score_exact(problem, Quiet())
    budget, refusals = 1, 0
    while True:
        small = replace(problem, memory_bytes=budget)
        try:
            (found,) = score_exact(small, Quiet())
        except OutOfMemory as error:
            refusals, budget = refusals + 1, int(re.findall(r"needs ([\d,]+) bytes", error.message)[0].replace(",", ""))
        else:
            break
    assert refusals > 1  # what one batch needs beside the others is asked for before anything is computed
    assert np.allclose(found.scores, expected.scores, atol=1e-7)
    assert peak_bytes(lambda: score_exact(small, Quiet())) < budget + SMALL

    real, refused = exact._Batch._without, []

    def without(self: Any, receiver: int, cut: torch.Tensor) -> torch.Tensor:
        if len(cut) > 2:
            refused.append(len(cut))
            raise torch.OutOfMemoryError("no more than two rows here")
        return real(self, receiver, cut)

    monkeypatch.setattr(exact._Batch, "_without", without)
    (halved,) = score_exact(problem, Quiet())
    assert refused
    assert np.allclose(halved.scores, expected.scores, atol=1e-7)


def test_exact_scores_that_are_no_numbers_end_the_search() -> None:
    problem = make_problem("llama", lengths=(5,), n=2)
    broken = Metric("broken", lambda logits, *_: logits[:, 0] / 0, False, False, False)
    with pytest.raises(ModelError, match=r"broken of a circuit without edges into 0\.0\.q"):
        score_exact(replace(problem, objective=broken), Quiet())


def wide_problem() -> Problem:
    """Large enough that threads share its matrix products."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=3000, n_positions=32, n_embd=256, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    t = wrap(GPT2LMHeadModel(config).eval())
    batches = make_batches(t, random_pairs(24, (12,), vocab=3000), 512, MEMORY)
    return Problem(t, prepare(t, batches, Resample()), METRICS["kl_divergence"], MEMORY)


def test_one_thread_and_two_decide_alike_in_float32() -> None:
    problem = wide_problem()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(search(problem, thresholds=[1e-5]))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0].kept, found[1].kept)
    assert found[0].kept is not None
    assert 10 < found[0].kept.sum() < 0.9 * problem.t.graph.n_edges


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no more than three rows here"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_where_memory_runs_out_rows_are_halved_and_no_decision_changes(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem("llama", lengths=(5,), n=2)
    expected = search(problem).kept
    limit, real = 3, candidates.Suffix.run
    refused = []

    def run(self: Any, receiver: int, x: torch.Tensor, *, commit: bool = False) -> torch.Tensor:
        if len(x) > limit:
            refused.append(len(x))
            raise error
        return real(self, receiver, x, commit=commit)

    monkeypatch.setattr(candidates.Suffix, "run", run)
    assert np.array_equal(search(problem).kept, expected)
    assert refused
    limit = 0
    with pytest.raises(type(error)):  # which the engine's process reports as out of memory
        search(problem)


def test_an_objective_that_is_no_number_ends_the_search() -> None:
    problem = make_problem("llama", lengths=(5,), n=2)
    broken = Metric("broken", lambda logits, *_: logits[:, 0] / 0, False, False, False)
    with pytest.raises(ModelError, match="broken"):
        search(replace(problem, objective=broken))


def test_a_row_that_assumed_a_wrong_decision_may_be_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is used of the rows after an edge that stays against expectation: so nothing may hang on them."""
    problem = make_problem("gpt2", metric="kl_divergence", lengths=(5,), n=2)
    lowest, real = [0.0], candidates.Candidates.values

    def values(self: Any, will_go: Any, of: Any = None) -> Any:
        found = real(self, will_go, of)
        lowest.append(found.min())
        return found

    monkeypatch.setattr(candidates.Candidates, "values", values)
    monkeypatch.setattr(search_module, "chain_length", lambda stays, overhead: 1)
    expected = search(problem, thresholds=[0.003])
    floor, lowest[:] = min(lowest) - 1e-9, [0.0]  # below every circuit that the search really stood at or tried

    def bounded(*of: Any) -> torch.Tensor:
        value = problem.objective.function(*of)
        return torch.where(value < floor, torch.nan, value)

    monkeypatch.setattr(search_module, "chain_length", lambda stays, overhead: 1000)
    found = search(replace(problem, objective=Metric("bounded", bounded, False, True, False)), thresholds=[0.003])
    assert np.isnan(lowest).any()
    assert np.array_equal(found.kept, expected.kept)


def test_what_a_walk_holds_of_receivers_to_come_changes_no_decision() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5,), n=2)
    graph, clean = problem.t.graph, search(problem, thresholds=[0.003])
    walk = Walk.begin(graph.legal, problem.t.dtype)
    walk.kept[:] = False
    search_on = Search([[problem]], Rule(0.003), walk, graph.legal.copy(), walk.costs.copy())
    search_on.run(lambda done, name: None, lambda: None)
    assert np.array_equal(walk.kept, clean.kept)


def test_a_search_that_is_not_exact_is_not_called_acdc_alone() -> None:
    problem = make_problem("gpt2", lengths=(5,), n=10)
    labels = [
        search(problem, **arguments).label
        for arguments in (
            {},
            {"warm_start": 0.3},
            {"stages": [8]},
            {"stages": [10]},
            {"warm_start": 0.3, "stages": [8]},
        )
    ]
    assert labels == ["acdc", "acdc-hierarchical", "acdc-staged", "acdc", "acdc-hierarchical-staged"]
    assert set(labels) < set(FOUND_WITH)


def test_arguments_that_contradict_each_other_are_named_together() -> None:
    problem = make_problem("gpt2", lengths=(5,), n=2)
    with pytest.raises(TaskError) as caught:
        search(problem, thresholds=[0.1], edges=5, rule="abs", sender_order="sideways", validation=2)
    assert [fault.where for fault in caught.value.faults] == [
        "thresholds",
        "rule",
        "sender_order",
        "validation",
        "validation",
    ]


def test_a_number_of_edges_that_no_threshold_gives_is_told() -> None:
    problem = make_problem("gpt2", lengths=(5,), n=2)
    n_edges = problem.t.graph.n_edges
    found = search(problem, thresholds=(), edges=n_edges)  # edges that help when they are cut go at any threshold
    assert found.kept is not None
    assert found.kept.sum() < 0.9 * n_edges
    assert any(f"{n_edges:,} edges were asked for" in note for note in found.notes)


def test_borderline_edges_are_decided_alone_and_counted() -> None:
    problem = make_problem("llama", lengths=(5,), n=2)
    kept = search(problem).kept
    assert kept is not None
    decisions = decide_again(problem, problem.t.graph.legal, kept, Rule(0.02))
    threshold = next(decision.cost for decision in decisions if not decision.is_cut)  # so all before it are cut again
    found = search(problem, thresholds=[threshold])
    assert found.facts["borderline_edges"] >= 1
    assert disagreements(problem, found, Rule(threshold), 1.0)[0] == 0


@pytest.mark.usefixtures("timeless")
def test_a_better_guess_is_accepted_more_often() -> None:
    problem = make_problem("gpt2", metric="kl_divergence", lengths=(5,), n=2)
    first, second, _ = search_acdc(problem, Quiet(), thresholds=[0.00301, 0.003], rule="signed")
    assert second.facts["acceptance_rate"] > first.facts["acceptance_rate"]
    alone = search(problem, thresholds=[0.003])
    assert np.array_equal(second.kept, alone.kept)


def test_a_warm_start_tests_only_the_edges_it_begins_with() -> None:
    problem = make_problem("gpt2", lengths=(5, 6), n=3)
    found = search(problem, thresholds=[float("-inf")], warm_start=0.3)
    assert found.kept is not None
    start = found.kept
    assert start.sum() == round(0.3 * problem.t.graph.n_edges)
    assert any("hierarchical" in note for note in found.notes)
    found = search(problem, warm_start=0.3)
    assert found.kept is not None
    assert not (found.tested & ~start).any()
    only = np.random.default_rng(0).random(start.shape) < 0.5
    decisions = list(decide_again(problem, start, found.kept, Rule(0.02), only=only))
    assert decisions
    assert not any(d.is_cut == found.kept[d.sender, d.receiver] for d in decisions)


def test_asking_for_a_number_of_edges_bisects_the_threshold() -> None:
    problem = make_problem("gpt2", metric="kl_divergence", lengths=(5,), n=2)
    found = search_acdc(problem, Quiet(), thresholds=(), rule="signed", edges=40)
    (one,) = found
    assert one.kept is not None
    assert 36 <= problem.t.graph.connected(one.kept).sum() <= 44
    with pytest.raises(TaskError, match="1,000,000"):
        search_acdc(problem, Quiet(), thresholds=(), rule="signed", edges=1_000_000)


def test_a_staged_search_decides_early_and_nearly_as_the_exact_one() -> None:
    problem = make_problem("llama", metric="kl_divergence", lengths=(5, 6), n=32)
    exact, staged = search(problem, thresholds=[0.01]), search(problem, thresholds=[0.01], stages=[8, 16])
    assert exact.kept is not None
    assert staged.kept is not None
    assert any("staged" in note for note in staged.notes)
    assert not exact.notes
    assert staged.facts["edges_decided_early"] > 0.3 * staged.facts["edges_tested"]
    assert (exact.kept & staged.kept).sum() > 0.7 * (exact.kept | staged.kept).sum()


def test_some_examples_of_a_problem_are_measured_as_in_the_whole() -> None:
    problem = multi_token_problem()
    some = problem.of(range(3))
    mask = problem.full_mask()
    mask[0] = 0
    assert some.n_examples == 3
    assert np.allclose(some.measure(mask[None])[0], problem.measure(mask[None])[0, :3], atol=1e-12)
    turned = problem.of([3, 1])
    assert np.allclose(turned.measure(mask[None])[0], problem.measure(mask[None])[0, [3, 1]], atol=1e-12)


def test_a_threshold_is_chosen_by_kl_on_prompts_that_were_not_searched_on() -> None:
    problem = make_problem("llama", metric="logit_diff", lengths=(5, 6), n=6)
    arguments = {"thresholds": [0.3, 0.03, 0.003], "rule": "absolute"}
    chosen, *others, ranking = search_acdc(problem, Quiet(), **arguments, validation=2)  # type: ignore[arg-type]
    *alone, _ = search_acdc(problem.of(range(4)), Quiet(), **arguments)  # type: ignore[arg-type]
    kls = {}
    for found in alone:
        assert found.kept is not None
        mask = torch.from_numpy(found.kept[None].astype(np.float64))
        held = Problem(problem.t, problem.of([4, 5]).prompts, METRICS["kl_divergence"], MEMORY)
        kls[found.facts["threshold"]] = -float(held.measure(mask).mean())
    best = min(kls, key=lambda threshold: kls[threshold])
    assert (chosen.key, chosen.facts["threshold"], ranking.key) == ("circuit", best, "thresholds")
    assert {one.facts["threshold"] for one in others} == set(kls) - {best}
    assert chosen.facts["validation_kl"] == pytest.approx(kls[best])
    assert any("not searched on" in note for note in chosen.notes)
    with pytest.raises(TaskError, match="give fewer"):
        search(problem, validation=6)


class Stops(Keeps):
    """Stops the search after so many checkpoints."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def save(self, checkpoint: Checkpoint) -> None:
        super().save(checkpoint)
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [7, 30])
def test_a_search_that_was_stopped_goes_on_to_the_same_circuit(after: int) -> None:
    problem = make_problem("gemma3", metric="kl_divergence", lengths=(5, 6), n=10)
    arguments = {"thresholds": [0.01, 0.001], "rule": "signed", "warm_start": 0.8, "stages": [8]}
    whole = search_acdc(problem, Quiet(), **arguments)  # type: ignore[arg-type]
    stopped = Stops(after)
    with pytest.raises(KeyboardInterrupt):
        search_acdc(problem, stopped, **arguments)  # type: ignore[arg-type]
    stopped.after = -1
    resumed = search_acdc(problem, stopped, **arguments)  # type: ignore[arg-type]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert np.allclose(ours.scores, theirs.scores, rtol=0, atol=1e-6)
        assert ours.kept is None or np.array_equal(ours.kept, theirs.kept)
        for count in ("edges_tested", "masked_forwards", "borderline_edges", "edges_decided_early"):
            assert ours.facts.get(count) == theirs.facts.get(count)  # no chance here: float64, far from the thresholds
