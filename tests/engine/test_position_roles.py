"""Edges split by position role, against loops over single tokens and against what they add up to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_gradient import MEMORY, make_problem, mask_gradient, relative
from test_library import SMALL as SMALL_EVALUATION
from test_library import rows, words_tokenizer
from test_masked_forward import masked_by_the_formula
from tiny_transformers import random_pairs, tiny

import acdc
from acdc.circuit import Circuit
from acdc.discovery.acdc import search_acdc
from acdc.discovery.eap import score_eap, score_eap_ig_activations, score_eap_ig_inputs
from acdc.discovery.ensemble import signed_ranks
from acdc.discovery.mask_ig import score_mask_ig
from acdc.discovery.problem import Problem
from acdc.errors import Fault, GraphMismatch, SpecError, TaskError
from acdc.evaluation.truth.hand_wired import induction_model
from acdc.graph import BoolMatrix, Graph, GraphShape
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.catalogue import CATALOGUE
from acdc.models.loading import describe_loaded
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.patching.forward import record
from acdc.patching.masked import run_masked
from acdc.pipeline import run_on
from acdc.plan import ModelFacts, Speed, estimate
from acdc.progress import Quiet
from acdc.spec import BY_ROLE, parse_job, with_defaults_of
from acdc.tasks import TASKS
from acdc.tasks.prompts import Pair

ROLES = ("first", "end", "other")
CAUSAL = ["gpt2", "llama-with-biases", "qwen3", "gemma2", "gemma3", "gpt-neox", "toy"]


def merged(graph: Graph, scores: Any) -> Any:
    """[..., senders, receivers] of a graph split by role -> of the whole graph: the sum over roles."""
    found = np.zeros((*scores.shape[:-1], graph.whole.n_receivers))
    for receiver in range(graph.n_receivers):
        found[..., graph.whole_of(receiver)] += scores[..., receiver]
    return found


def test_every_receiver_but_the_logits_stands_once_for_each_role() -> None:
    shape = GraphShape(2, 2, 1, split_position=True)
    whole, graph = Graph(shape), Graph(replace(shape, roles=ROLES))
    assert graph.n_receivers == 3 * (whole.n_receivers - 1) + 1
    assert graph.n_edges == 3 * (whole.n_edges - whole.n_senders) + whole.n_senders
    assert graph.whole == whole
    assert whole.whole is whole
    names = [graph.edge_name(edge) for edge in graph.edges()]
    assert [name for name in names if name.startswith("0.1->1.0.q")] == [f"0.1->1.0.q@{role}" for role in ROLES]
    assert [name for name in names if name.startswith("0.1->logits")] == ["0.1->logits"]
    assert all(graph.edge_name(graph.edge(name)) == name for name in names)
    assert graph.fingerprint not in (whole.fingerprint, Graph(replace(shape, roles=ROLES[::-1])).fingerprint)
    for name in ("0.1->1.0.q", "0.1->1.0.q@IO", "0.1->logits@end"):
        with pytest.raises(GraphMismatch, match="no receiver"):
            graph.edge(name)


def test_an_edge_named_without_a_role_is_all_its_parts() -> None:
    graph = Graph(GraphShape(2, 2, 1, roles=ROLES))
    for name, parts in {
        "0.1 -> 1.0.q": [f"0.1->1.0.q@{role}" for role in ROLES],
        "0.1->1.0.q@first": ["0.1->1.0.q@first"],
        "0.1->logits": ["0.1->logits"],
    }.items():
        assert [graph.edge_name(edge) for edge in graph.parts(name)] == parts
        assert set(graph.names_of(graph.mask_of_edges([name]))) == set(parts)
    assert [graph.whole.edge_name(edge) for edge in graph.whole.parts("0.1->1.0.q")] == ["0.1->1.0.q"]


def test_a_role_that_the_graph_has_not_is_told_with_those_that_it_has() -> None:
    graph = Graph(GraphShape(2, 2, 1, roles=ROLES))
    with pytest.raises(GraphMismatch) as caught:
        graph.mask_of_edges(["embed->1.0.q@IO", "embed->mlp9", "embed->mlp1"])
    assert [fault.where for fault in caught.value.faults] == ["embed->1.0.q@IO", "embed->mlp9"]
    assert "at a role, as 0.0.q@end: first, end, other" in caught.value.faults[0].message
    with pytest.raises(GraphMismatch, match="not split by role: `positions` does that"):
        graph.whole.edge("embed->1.0.q@first")


def test_roles_without_an_end_are_refused() -> None:
    for roles in (("first",), ("end",), ("end", "other", "end")):
        with pytest.raises(GraphMismatch, match="split by roles"):
            GraphShape(2, 2, 1, roles=roles)


def connected_by_walking(graph: Graph, kept: BoolMatrix) -> BoolMatrix:
    """Every path embed -> logits, followed from edge to edge and from role to role."""
    on_path = np.zeros_like(kept)

    def walk(sender: int, role: str, path: list[tuple[int, int]]) -> None:
        for receiver in np.nonzero(kept[sender])[0].tolist():
            r = graph.receivers[receiver]
            if (r.role or "end") != role:
                continue
            here = [*path, (sender, receiver)]
            if r.kind == "logits":
                for cell in here:
                    on_path[cell] = True
                continue
            reading = graph.shape.roles if r.kind in ("k", "v") and role != "end" else (role,)
            nodes = set(graph.nodes_read_by(receiver))
            if graph.shape.heads_share_norm and r.kind != "mlp":
                nodes = {f"{r.layer}.{h}" for h in range(graph.shape.n_heads)}
            for node in nodes:
                for later in reading:
                    walk(graph.sender_index(node), later, here)

    for start in range(graph.n_inputs):
        for role in graph.shape.roles:
            walk(start, role, [])
    return on_path


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.35), st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_connected_edges_are_those_on_some_path_through_tokens(
    seed: int, density: float, parallel: bool, shared: bool, kv_heads: int
) -> None:
    graph = Graph(GraphShape(2, 2, kv_heads, is_parallel=parallel, heads_share_norm=shared, roles=ROLES))
    kept = graph.legal & (np.random.default_rng(seed).random(graph.legal.shape) < density)
    assert np.array_equal(graph.connected(kept), connected_by_walking(graph, kept))


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_any_mask_by_role_gives_what_the_formula_says_token_by_token(name: str) -> None:
    t = wrap(tiny(name)).split_by(["first"])
    (batch,) = make_batches(t, random_pairs(3, (6,)), 512, MEMORY)
    ablation = record(t, batch.corrupt)[0]
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(3, *t.graph.legal.shape, generator=generator, dtype=torch.float64)
    masks[1] = (masks[1] < 0.5).double()
    roles = batch.numbered_roles(t.graph.shape.roles)
    assert [[ROLES[i] for i in row] for row in roles.tolist()] == [["first", *["other"] * 4, "end"]] * 3
    together = t.unembed(run_masked(t, t.embed(batch.clean), ablation, masks, roles=roles))
    for mask, logits in zip(masks, together, strict=True):
        expected = masked_by_the_formula(t, batch.clean, ablation, mask, roles)
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_edges_that_are_not_connected_change_nothing(name: str) -> None:
    problem = make_problem(name, lengths=(5, 6), roles=("first",))
    graph, rng = problem.t.graph, np.random.default_rng(0)
    kept = graph.legal & (rng.random((20, *graph.legal.shape)) < 0.3)
    connected = graph.connected(kept)
    assert 0 < connected.sum() < kept.sum()
    both = torch.from_numpy(np.concatenate([kept, connected]).astype(np.float64))
    values = problem.measure(both)
    assert np.allclose(values[:20], values[20:], atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_mask_that_is_the_same_at_all_roles_is_that_of_the_whole_graph(name: str) -> None:
    split, whole = make_problem(name, lengths=(5, 6), roles=("first",)), make_problem(name, lengths=(5, 6))
    masks = torch.rand(4, *whole.t.graph.legal.shape, dtype=torch.float64)
    graph = split.t.graph
    at_roles = masks[:, :, [graph.whole_of(receiver) for receiver in range(graph.n_receivers)]]
    assert np.allclose(split.measure(at_roles), whole.measure(masks), atol=1e-9)


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("name", CAUSAL)
def test_attribution_by_role_is_the_gradient_with_respect_to_that_mask(name: str, ablation: str) -> None:
    problem = make_problem(name, ablation=ablation, lengths=(6, 7), roles=("first",))
    (found,) = score_eap(problem, Quiet())
    expected = mask_gradient(problem, problem.full_mask())
    assert relative(torch.from_numpy(found.scores), expected) < 1e-5


@pytest.mark.parametrize("method", [score_eap, score_eap_ig_inputs, score_eap_ig_activations, score_mask_ig])
@pytest.mark.parametrize("memory", [1, MEMORY])
def test_scores_by_role_add_up_to_those_of_whole_edges(method: Any, memory: int) -> None:
    arguments = {} if method is score_eap else {"steps": 2}
    found, graphs = [], []
    for roles in (("first",), None):
        problem = replace(make_problem("llama", lengths=(5, 6), roles=roles), keep_examples=memory > 1)
        found += method(replace(problem, memory_bytes=memory), Quiet(), **arguments)
        graphs.append(problem.t.graph)
    split, whole = found
    assert relative(torch.from_numpy(merged(graphs[0], split.scores)), torch.from_numpy(whole.scores)) < 1e-6
    if memory > 1:
        assert split.per_example is not None
        examples = np.stack([graphs[0].matrix_of(one) for one in split.per_example])
        expected = np.stack([graphs[1].matrix_of(one) for one in whole.per_example])
        assert relative(torch.from_numpy(merged(graphs[0], examples)), torch.from_numpy(expected)) < 1e-5
        assert np.allclose(examples.mean(0), split.scores, atol=1e-5 * abs(split.scores).max())


def test_what_follows_a_prompt_is_its_end_whatever_it_is_called() -> None:
    t = wrap(tiny("llama")).split_by(["first"])
    pairs = [replace(pair, answers=((3, 4),), roles={"zz": (4, 5)}) for pair in random_pairs(2, (5,))]
    (batch,) = make_batches(t, pairs, 512, MEMORY)
    roles = batch.numbered_roles(t.graph.shape.roles).tolist()
    assert {tuple(ROLES[i] for i in row) for row in roles} == {("other",) * 4 + ("end",) * 2}


def test_a_model_that_looks_ahead_is_refused() -> None:
    with pytest.raises(TaskError, match="looks ahead"):
        wrap(tiny("toy-bidirectional")).split_by(["first"])


def test_fewer_examples_keep_their_roles() -> None:
    problem = make_problem("gpt2", lengths=(5, 6), roles=("first",))
    graph = problem.t.graph
    mask = torch.rand(1, *graph.legal.shape, dtype=torch.float64)
    every = problem.measure(mask)[0]
    assert np.allclose(problem.of([1, 3]).measure(mask)[0], every[[1, 3]], atol=1e-9)


def test_acdc_finds_where_the_hand_wired_induction_circuit_reads_and_writes() -> None:
    """x A B y f A -> B: the token before B is looked for at the end, found at B's place, and B copied from there."""
    t = wrap(induction_model()).split_by(["A", "B"])
    pairs = [
        Pair((x, a, b, y, f, a), (x, c, d, y, f, c), ((b,),), ((d,),), "g", {"A": (1, 2), "B": (2, 3), "end": (5, 6)})
        for x, a, b, c, d, y, f in ((0, 1, 2, 3, 4, 5, 6), (6, 3, 1, 0, 7, 2, 5))
    ]
    problem = Problem(t, prepare(t, make_batches(t, pairs, 512, MEMORY), Resample()), METRICS["logit_diff"], MEMORY)
    (found,) = search_acdc(problem, Quiet(), thresholds=[1e-6], rule="signed")
    assert found.kept is not None
    circuit = {"embed->0.0.v@A", "0.0->1.0.k@B", "embed->1.0.q@end", "embed->1.0.v@B", "1.0->logits"}
    assert set(t.graph.names_of(found.kept)) == circuit
    assert found.facts["objective"] == pytest.approx(found.facts["objective_by_masked_forward"], abs=1e-10)


def words_of(text: str, first: int, last: int) -> tuple[int, int]:
    """The characters of these words, both included."""
    words = text.split(" ")
    return len(" ".join([*words[:first], ""])), len(" ".join(words[: last + 1]))


def with_spans(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Each with the place of a word under a name: the first under the first."""
    for row in rows:
        row["spans"] = {name: words_of(row["clean"], i, i) for i, name in enumerate(names)}
    return rows


def found_by(positions: Any, method: Any, pairs: list[dict[str, Any]] | None = None, **spec: Any) -> Circuit:
    return acdc.discover(
        tiny("llama", torch.float32),
        words_tokenizer(),
        pairs or with_spans(rows(), "first", "second"),
        positions=positions,
        method=method,
        **{"evaluation": SMALL_EVALUATION, "task": {"prompts": 16, "held_out": 8}, "selection": {"size": 0.2}, **spec},
    )


@pytest.mark.parametrize("method", BY_ROLE)
def test_every_method_that_splits_edges_finds_a_circuit_whose_file_tells_the_roles(method: str) -> None:
    asked = {"name": method, **({"thresholds": [0.05]} if method == "acdc" else {})}
    asked |= {"steps": 20} if method == "edge-pruning" else {}
    selection = {} if method == "acdc" else {"size": 0.2}
    circuit = found_by("roles", asked, selection=selection)
    assert circuit.graph.shape.roles == ("first", "second", "end", "other")
    assert circuit.provenance.choices.positions == "first, second, end, other"
    assert circuit.provenance.task.roles == ("first", "second", "end")
    again = Circuit.from_bytes(circuit.to_bytes())
    assert again.graph == circuit.graph
    assert np.array_equal(again.kept, circuit.kept)
    assert any("@second" in circuit.graph.edge_name(edge) for edge in circuit.edges())
    assert circuit.report is not None
    assert circuit.report.kept_held_out is not None
    assert "@" in circuit._repr_svg_()


def test_an_ensemble_ranks_the_parts_of_edges_by_the_ranks_of_its_methods() -> None:
    methods = [{"name": "eap"}, {"name": "mask-ig", "steps": 2}]
    together = found_by("roles", {"name": "ensemble", "methods": methods})
    assert together.graph.shape.roles == ("first", "second", "end", "other")
    each = [circuit.graph.in_order(circuit.scores) for circuit in (found_by("roles", method) for method in methods)]
    expected = np.mean([signed_ranks(scores) for scores in each], axis=0)
    assert together.graph.in_order(together.scores) == pytest.approx(expected, abs=1e-6)


def test_roles_may_be_chosen_and_their_order_does_not_matter() -> None:
    one, other = (found_by(asked, "eap") for asked in ("second,first", ["first", "second", "end"]))
    assert one.graph == other.graph
    fewer = found_by("first", "eap")
    assert fewer.graph.shape.roles == ("first", "end", "other")


def evaluated(circuit: Circuit, **changes: Any) -> Circuit:
    loaded = describe_loaded(tiny("llama", torch.float32), words_tokenizer())
    spec = with_defaults_of(circuit.provenance.run.spec, {"kind": "evaluate", "circuit": "stored", **changes})
    (result,) = run_on(loaded, parse_job(spec), Quiet(), circuit)
    assert result.circuit is not None
    return result.circuit


def test_an_evaluation_keeps_the_circuits_roles_whatever_others_its_prompts_have() -> None:
    circuit = found_by("roles", "eap")
    more = {"name": "custom", "pairs": with_spans(rows(), "first", "second", "third")}
    assert evaluated(circuit, task=more).graph == circuit.graph
    fewer = {"name": "custom", "pairs": with_spans(rows(), "first")}
    with pytest.raises(TaskError, match="the role second by which edges are to be split; all have: first, end"):
        evaluated(circuit, task=fewer)


def test_whole_and_split_circuits_are_not_measured_as_each_other() -> None:
    split, whole = found_by("roles", "eap"), found_by("all", "eap")
    roles = r"split by role \(first, second, end, other\)"
    with pytest.raises(GraphMismatch, match=f"edges are {roles}, and `positions` makes them whole: leave it out"):
        evaluated(split, positions="all")
    with pytest.raises(GraphMismatch, match=f"edges are whole, and `positions` makes them {roles}: leave it out"):
        evaluated(whole, positions="roles")


def test_a_full_evaluation_of_edges_at_roles_can_be_had() -> None:
    circuit = found_by("roles", "eap", evaluation={"extent": "full", **SMALL_EVALUATION})
    assert circuit.report is not None
    assert circuit.report.minimality is not None
    assert all("->" in removal.edge for removal in circuit.report.minimality.removals)


class Told(Quiet):
    """Keeps the log, and the names of the phases begun."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.phases: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)


def test_a_role_that_not_every_prompt_has_is_named_with_those_that_all_have() -> None:
    pairs, told = with_spans(rows(), "first", "second", "third"), Told()
    del pairs[3]["spans"]["second"], pairs[5]["spans"]["third"]
    with pytest.raises(TaskError) as caught:
        found_by(["second", "third"], "eap", pairs)
    assert [fault.where for fault in caught.value.faults] == ["positions.second", "positions.third"]
    assert "the roles second, third by which edges are to be split; all have: first, end" in caught.value.message
    assert found_by("roles", "eap", pairs, progress=told).graph.shape.roles == ("first", "end", "other")
    assert told.lines[:2] == [f"not every prompt has {role}: its tokens are `other`" for role in ("second", "third")]


@pytest.mark.parametrize(("name", "word"), [("IO", 1), ("last", 4)], ids=["within another role", "the last token"])
def test_a_role_whose_tokens_are_all_anothers_is_refused_by_name_and_told_among_all_roles(name: str, word: int) -> None:
    pairs, told = rows(), Told()
    for row in pairs:
        row["spans"] = {name: words_of(row["clean"], word, word), "clause": words_of(row["clean"], 0, 2)}
    pairs[3]["spans"][name] = words_of(pairs[3]["clean"], 3, 4)  # here it keeps one
    with pytest.raises(TaskError, match=f"cannot be split by the role {name}: a token has one role: .* do not overlap"):
        found_by([name, "end"], "eap", pairs)
    assert found_by("roles", "eap", pairs, progress=told).graph.shape.roles == ("clause", "end", "other")
    why = "in 23 of 24 prompts all of its tokens are another role's"
    assert told.lines[0].startswith(f"edges are not split by {name}: {why}; a token has one role")


def test_where_every_token_has_a_role_other_is_empty_and_stays() -> None:
    told = Told()
    circuit = found_by("roles", "eap", with_spans(rows(), "first", "second", "third", "fourth"), progress=told)
    assert circuit.graph.shape.roles[-2:] == ("end", "other")
    assert not any("split by" in line for line in told.lines)
    assert evaluated(circuit).graph == circuit.graph  # which names all of these roles


def test_a_role_that_no_prompt_has_is_refused_with_the_spec() -> None:
    with pytest.raises(SpecError) as caught:
        found_by("first,secnd", "eap")
    assert caught.value.faults == (
        Fault("positions", "task 'custom' has no role 'secnd'; did you mean second? it has: first, second, end, other"),
    )


def test_all_faults_of_roles_are_told_at_once() -> None:
    pairs = with_spans(rows(), "first", "second", "third", "fourth", "fifth")
    del pairs[3]["spans"]["second"]
    with pytest.raises(TaskError) as caught:
        found_by(["first", "second", "fifth"], "eap", pairs)
    assert [fault.where for fault in caught.value.faults] == ["positions.second", "positions.fifth"]
    assert "the role second by which edges" in caught.value.message
    assert "the role fifth: a token has one role" in caught.value.message


@pytest.mark.parametrize("method", ["exact", "eap-ig-qk", "node-ap", "information-flow-routes"])
@pytest.mark.parametrize("is_in_an_ensemble", [False, True])
def test_methods_that_do_not_split_edges_say_which_do(method: str, is_in_an_ensemble: bool) -> None:
    asked = {"name": "ensemble", "methods": ["eap", method]} if is_in_an_ensemble else method
    with pytest.raises(SpecError) as caught:
        parse_job({"task": "ioi", "positions": "roles", "method": asked})
    (fault,) = caught.value.faults
    assert f"method '{method}' does not split edges by position" in fault.message
    assert "eap-ig-inputs" in fault.message


def test_a_plan_counts_the_parts_of_edges() -> None:
    facts = ModelFacts(CATALOGUE["gemma3-270m-q4"].size, 0, False, 0)
    whole, split = (
        estimate(parse_job({"task": "ioi", "positions": asked, "method": "acdc"}), facts, Speed(1e9, "a test"))
        for asked in ("all", "roles")
    )
    n_roles = len(TASKS["ioi"].roles) + 1
    graph = Graph(CATALOGUE["gemma3-270m-q4"].size.shape.split_by(TASKS["ioi"].roles))
    assert graph.n_edges == n_roles * graph.whole.n_edges - (n_roles - 1) * graph.n_senders
    assert split.flops is not None
    assert whole.flops is not None
    assert split.flops > 3 * whole.flops


def test_a_prompt_typed_in_has_no_roles_and_says_so() -> None:
    circuit = found_by("roles", "eap")
    loaded = describe_loaded(tiny("llama", torch.float32), words_tokenizer())
    spec, told = parse_job({"kind": "try", "circuit": "cir_1", "prompt": "w3 w4 w5"}), Told()
    with pytest.raises(TaskError, match="split by position role"):
        run_on(loaded, spec, told, circuit)
    assert not told.phases  # nothing was done for it
