"""Programs that models are trained to hold: what they answer, and what exchanging a node or an edge makes of it."""

from __future__ import annotations

import pytest
import torch

from acdc.evaluation.truth.high_level import HIGH_LEVEL
from acdc.evaluation.truth.siit import empty_model, mask_of, pairs_of, true_edges
from acdc.models.architectures import wrap

NAMES = list(HIGH_LEVEL)
ANSWERS = {
    "equals-the-last": ([1, 2, 3, 4, 4], 1),
    "equals-the-first": ([4, 2, 3, 1, 5], 0),
    "induction": ([3, 1, 4, 0, 5, 1], 4),
    "successor-of-induction": ([3, 1, 7, 0, 5, 1], 0),
    "sum-of-two": ([0, 0, 3, 4, 1], 2),
    "parity": ([0, 1, 0, 2, 0, 1], 1),
    "more-of-which": ([0, 1, 1, 0, 3, 1], 0),
    "how-far-below": ([1, 5, 2, 0, 2], 3),
    "first-or-last": ([3, 0, 0, 5, 1], 5),
    "two-hops": ([2, 6, 4, 2, 4], 6),
    "table-then-copy": ([5, 0, 0, 0, 0], 3),
    "indirect-object": ([2, 5, 6, 2, 7], 5),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_program_answers_a_hand_worked_prompt(name: str) -> None:
    prompt, answer = ANSWERS[name]
    assert HIGH_LEVEL[name].answers(torch.tensor([prompt])).tolist() == [answer]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_answers_are_within_the_vocabulary(name: str) -> None:
    program = HIGH_LEVEL[name]
    tokens = program.draw(500, torch.Generator().manual_seed(0))
    answers = program.answers(tokens)
    assert tokens.shape == (500, program.length)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < program.n_tokens
    assert 0 <= int(answers.min()) <= int(answers.max()) < program.n_answers
    assert len(set(answers.tolist())) > 1


@pytest.mark.parametrize("name", NAMES)
def test_every_edge_of_a_program_changes_some_answer_when_what_it_tells_is_exchanged(name: str) -> None:
    program = HIGH_LEVEL[name]
    generator = torch.Generator().manual_seed(0)
    base, source = (program.draw(500, generator) for _ in range(2))
    told = program.values(source)
    for edge in program.edges:
        exchanged = program.answers(base, {edge: told[edge[0]]})
        assert (exchanged != program.answers(base)).any(), edge
    everything = {edge: told[edge[0]] for edge in program.edges}
    assert (program.answers(base, everything) == program.answers(source)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_program_has_an_answer_whatever_is_exchanged(name: str) -> None:
    """Values meet that no one prompt puts together, and training asks what the program says of them."""
    program = HIGH_LEVEL[name]
    generator = torch.Generator().manual_seed(0)
    base, source = (program.draw(500, generator) for _ in range(2))
    told = program.values(source)
    nodes = [program.edges_from(node.where) for node in program.nodes]
    for edges in [*nodes, *({edge} for edge in program.edges)]:
        answers = program.answers(base, {edge: told[edge[0]] for edge in edges})
        assert 0 <= int(answers.min()) <= int(answers.max()) < program.n_answers, edges


@pytest.mark.parametrize("name", NAMES)
def test_a_programs_edges_are_edges_of_the_model_that_is_to_hold_it(name: str) -> None:
    program = HIGH_LEVEL[name]
    graph = wrap(empty_model(program)).graph
    true = true_edges(program, graph)
    assert not (true & ~graph.legal).any(), "an edge runs backwards"
    assert (graph.connected(true) == true).all()
    for edge in program.edges:
        assert mask_of(graph, {edge}).any(), edge


def test_benchmark_prompts_have_another_answer_when_corrupt() -> None:
    program = HIGH_LEVEL["induction"]
    pairs = pairs_of(program)
    assert len(pairs) == 128
    for pair in pairs:
        assert pair.answers != pair.wrong
        assert program.answers(torch.tensor([pair.corrupt])).tolist() == [pair.wrong[0][0]]
