"""The whole way in one process: discover() on a model in memory, then evaluate, edit and try what it found."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_transformers import VOCAB, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import acdc
from acdc.card import origin_of
from acdc.circuit import Circuit
from acdc.drawing import draw_curve
from acdc.errors import CircuitFileError, GraphMismatch, ParityFailed, SpecError, TaskError, UnsupportedModel
from acdc.models.loading import describe_loaded
from acdc.numerals import listed
from acdc.pipeline import run_on
from acdc.progress import Quiet
from acdc.spec import DiscoverSpec, parse_job, with_defaults_of

SMALL = {"grid": [0.1, 0.5, 1.0], "random_circuits": 2, "band_circuits": 1}


def words_tokenizer() -> PreTrainedTokenizerFast:
    """w3 ... w49, split at spaces, and three special tokens."""
    special = ["<unk>", "<bos>", "<eos>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(3, VOCAB))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


def rows(n: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def prompt() -> str:
        return " ".join(f"w{rng.randrange(3, VOCAB)}" for _ in range(5))

    return [
        {"clean": prompt(), "corrupt": prompt(), "answers": " w7", "wrong": " w9", "group": f"g{i % 6}"}
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return words_tokenizer()


def discover(model: Any, tokenizer: Any, **spec: Any) -> Circuit:
    fields = {
        "evaluation": SMALL,
        "task": {"prompts": 16, "held_out": 8},
        "method": "eap",
        "selection": {"size": 0.3},
        **spec,
    }
    return acdc.discover(model, tokenizer, rows(), **fields)


@pytest.fixture(scope="module")
def circuit(model: Any, tokenizer: PreTrainedTokenizerFast) -> Circuit:
    return discover(model, tokenizer)


def test_a_circuit_carries_what_its_numbers_depend_on(circuit: Circuit, model: Any) -> None:
    provenance = circuit.provenance
    assert circuit.graph.n_edges == int(circuit.tested.sum())
    assert provenance.model.n_parameters == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert provenance.model.parity is not None
    assert provenance.model.parity < 1e-4
    assert provenance.choices.method == "eap"
    assert provenance.choices.objective == "logit_diff"
    assert provenance.run.passes == {"forward": 2, "forward_backward": 1}
    assert provenance.run.spec["task"]["pairs"]
    assert circuit.report is not None
    assert {point.split for point in circuit.report.points} == {"search", "held_out"}


def test_a_split_position_embedding_is_a_sender_that_the_spec_asks_for(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("gpt2", torch.float32)
    together, split = (discover(model, tokenizer, split_position=asked) for asked in (False, True))
    assert [sender.name for sender in split.graph.senders[:2]] == ["embed", "pos"]
    assert split.graph.n_senders == together.graph.n_senders + 1
    summed = split.scores[:2].sum(0)
    assert np.allclose(summed, together.scores[0], atol=1e-5 * np.abs(together.scores).max())


def test_a_model_without_position_embeddings_cannot_split_them(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnsupportedModel, match="no position embedding"):
        discover(model, tokenizer, split_position=True)


def test_held_out_prompts_share_no_group_with_the_searched_ones(circuit: Circuit) -> None:
    task = circuit.provenance.task
    assert task.groups_search
    assert task.groups_held_out
    assert not set(task.groups_search) & set(task.groups_held_out)


def test_the_same_spec_gives_the_same_circuit_with_one_thread_and_with_two(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit
) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            again = discover(model, tokenizer)
            assert np.array_equal(again.kept, circuit.kept)
            assert np.abs(again.scores - circuit.scores).max() <= 1e-5 * np.abs(circuit.scores).max()
    finally:
        torch.set_num_threads(before)


def test_the_model_is_as_it_was_found(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    fresh = tiny("llama", torch.float32).train()
    with torch.inference_mode():  # as many notebooks do
        discover(fresh, tokenizer)
    assert all(part.training for part in fresh.modules())
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_notebooks_get_a_table_and_a_picture(circuit: Circuit) -> None:
    table = circuit.to_dataframe()
    assert list(table.columns) == ["sender", "receiver", "score", "inclusion"]
    assert len(table) == circuit.n_edges
    assert circuit._repr_svg_().startswith("<svg")


def test_a_search_over_thresholds_gives_the_ranking(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    method = {"name": "acdc", "thresholds": [0.001, 0.1], "rule": "absolute"}
    fields = {"evaluation": SMALL, "task": {"prompts": 4, "held_out": 4}, "method": method}
    found = acdc.discover(model, tokenizer, rows(12), **fields)
    assert set(np.unique(found.scores)) <= {np.float32(0), np.float32(0.001), np.float32(0.1)}
    assert found.provenance.choices.objective == "kl_divergence"


@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_a_stored_circuit_is_evaluated_under_any_ablation(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit, ablation: str
) -> None:
    data = {"kind": "evaluate", "circuit": "stored", "ablation": ablation, "edit": {"remove_nodes": ["mlp0"]}}
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, data))
    (result,) = run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)
    assert result.circuit is not None
    assert result.circuit.report is not None
    assert "mlp0" not in result.circuit.nodes()
    assert result.circuit.selected.rule == "edited"
    assert result.circuit.provenance.choices.ablation.startswith(ablation)


def absent_edge(circuit: Circuit) -> str:
    graph = circuit.graph
    return next(graph.edge_name(e) for e in graph.edges() if not circuit.kept[e.sender, e.receiver])


def test_a_name_of_an_edit_that_changes_nothing_is_noted(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit
) -> None:
    absent = absent_edge(circuit)
    edit = {"remove_nodes": ["mlp0"], "remove_edges": [absent]}
    data = {"kind": "evaluate", "circuit": "stored", "edit": edit}
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, data))
    (result,) = run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)
    assert result.circuit is not None
    (note,) = result.circuit.provenance.run.notes
    assert note == f"the edit's remove_edges: '{absent}' is not in the circuit: that changed nothing"


def test_a_circuit_that_an_edit_leaves_empty_is_noted(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit
) -> None:
    to_logits = [circuit.graph.edge_name(edge) for edge in circuit.edges()]
    to_logits = [name for name in to_logits if name.endswith("->logits")]
    data = {"kind": "evaluate", "circuit": "stored", "edit": {"remove_edges": to_logits}}
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, data))
    (result,) = run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)
    assert result.circuit is not None
    assert result.circuit.n_edges == 0
    (note,) = result.circuit.provenance.run.notes
    assert note.startswith("the circuit is empty: none of ")
    assert origin_of(result.circuit) == f"Circuit stored, edited: removed {listed(to_logits)}."


def test_an_edit_that_changes_nothing_is_not_evaluated(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit
) -> None:
    data = {"kind": "evaluate", "circuit": "stored", "edit": {"remove_edges": [absent_edge(circuit)]}}
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, data))
    with pytest.raises(GraphMismatch, match="leaves the circuit as it is"):
        run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)


def test_the_unchanged_circuit_is_judged_as_it_was(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit
) -> None:
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, {"kind": "evaluate", "circuit": "stored"}))
    (result,) = run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)
    assert result.circuit is not None
    assert result.circuit.report is not None
    assert circuit.report is not None
    for ours, theirs in zip(result.circuit.report.kept, circuit.report.kept, strict=True):
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-7)
        assert ours.metric == pytest.approx(theirs.metric, rel=1e-4)


def test_a_hypothesis_of_nodes_becomes_a_circuit(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = describe_loaded(model, tokenizer)
    task = {"name": "custom", "pairs": rows(), "prompts": 16, "held_out": 8}
    data = {"kind": "evaluate", "model": loaded.card.reference, "task": task, "evaluation": SMALL}
    spec = parse_job({**data, "hypothesis": {"nodes": ["0.1", "mlp1"]}})
    (result,) = run_on(loaded, spec, Quiet())
    assert result.circuit is not None
    assert result.circuit.selected.rule == "hypothesis"
    assert set(result.circuit.nodes()) == {"embed", "0.1", "mlp1"}
    wrong = parse_job({**data, "hypothesis": {"nodes": ["9.9", "mlp1"], "edges": ["embed->mlp77", "embed->mlp0"]}})
    with pytest.raises(GraphMismatch, match=r"no receiver .mlp77.; it has heads layer.head, 0.0 to 2.3") as caught:
        run_on(loaded, wrong, Quiet())
    assert [fault.where for fault in caught.value.faults] == ["embed->mlp77", "9.9"]


def test_a_circuit_means_nothing_on_another_graph(circuit: Circuit, tokenizer: PreTrainedTokenizerFast) -> None:
    other = describe_loaded(tiny("gpt2", torch.float32), tokenizer)
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, {"kind": "evaluate", "circuit": "stored"}))
    with pytest.raises(GraphMismatch, match="another graph"):
        run_on(other, spec, Quiet(), circuit)


@pytest.mark.parametrize("corrupt", [None, "w9 w8 w7"])
def test_try_shows_model_circuit_complement_and_random(
    model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit, corrupt: str | None
) -> None:
    spec = parse_job({"kind": "try", "circuit": "stored", "prompt": "w3 w4 w5", "corrupt": corrupt, "top": 4})
    (result,) = run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)
    columns = result.data["columns"]
    assert list(columns) == ["model", "circuit", "complement", "random"]
    with torch.no_grad():
        probabilities = model(torch.tensor([[3, 4, 5]])).logits[0, -1].softmax(-1)
    assert [row["id"] for row in columns["model"]] == probabilities.topk(4).indices.tolist()
    assert columns["model"][0]["probability"] == pytest.approx(float(probabilities.max()), rel=1e-4)


def test_try_needs_prompts_of_equal_length(model: Any, tokenizer: PreTrainedTokenizerFast, circuit: Circuit) -> None:
    spec = parse_job({"kind": "try", "circuit": "stored", "prompt": "w3 w4", "corrupt": "w5"})
    with pytest.raises(TaskError, match="2 tokens and the corrupt one 1"):
        run_on(describe_loaded(model, tokenizer), spec, Quiet(), circuit)


def test_a_circuit_file_is_the_circuit_to_the_bit(circuit: Circuit) -> None:
    loaded = Circuit.from_bytes(circuit.to_bytes())
    assert loaded.to_bytes() == circuit.to_bytes()
    assert np.array_equal(loaded.scores, circuit.scores)
    assert circuit.inclusion is not None
    assert np.array_equal(loaded.inclusion, circuit.inclusion)
    assert loaded.provenance == circuit.provenance
    assert loaded.report == circuit.report


def test_wrong_arguments_are_all_named(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(SpecError) as caught:
        acdc.discover(model, tokenizer, rows(), method="nope", metric="nope", seed=-1)
    assert len(caught.value.faults) == 3
    with pytest.raises(SpecError, match="either pairs or task"):
        acdc.discover(model, tokenizer, rows(), task="ioi")


def test_a_model_that_its_description_does_not_fit_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("llama", torch.float32)
    model.model.layers[0].self_attn.scaling *= 2
    attention = model.model.layers[0].self_attn
    original = attention.forward
    attention.forward = lambda *args, **kwargs: (original(*args, **kwargs)[0] * 1.1, None)
    with pytest.raises(ParityFailed, match="plain forward"):
        discover(model, tokenizer)


def test_a_small_graph_swept_at_every_size_still_draws_its_curve(
    model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = discover(model, tokenizer, evaluation={"random_circuits": 1, "band_circuits": 1}, selection={})
    assert found.report is not None
    assert min(point.fraction for point in found.report.points) == 0
    assert draw_curve(found.report).startswith("<svg")


def test_one_threshold_gives_a_set_and_no_curve(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    fields = {"evaluation": SMALL, "task": {"prompts": 4, "held_out": 4}}
    found = acdc.discover(model, tokenizer, rows(12), method={"name": "acdc", "thresholds": 0.01}, **fields)
    assert found.report is not None
    assert found.report.points == ()
    assert found.selected.rule == "decisions"
    assert found.report.kept
    assert any(note.startswith("no curve: ") for note in found.provenance.run.notes)
    said = found.provenance.choices.said
    assert said["thresholds"] == [0.01]
    assert {"stages", "edges", "warm_start"}.isdisjoint(said)
    assert not found.scores[~found.tested].any()


@pytest.mark.parametrize("threshold", [float("inf"), float("-inf")])
def test_infinite_thresholds_are_stored_and_read_back(
    model: Any, tokenizer: PreTrainedTokenizerFast, threshold: float
) -> None:
    fields = {"evaluation": SMALL, "task": {"prompts": 4, "held_out": 4}}
    found = acdc.discover(model, tokenizer, rows(12), method={"name": "acdc", "thresholds": threshold}, **fields)
    assert found.n_edges == (found.graph.n_edges if threshold < 0 else 0)
    again = Circuit.from_bytes(found.to_bytes())
    spec = parse_job(again.provenance.run.spec)
    assert isinstance(spec, DiscoverSpec)
    assert spec.method.thresholds == (threshold,)  # type: ignore[union-attr]


class Phases(Quiet):
    """Keeps the names of the phases that began."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def phase(self, name: str, total: int) -> None:
        self.names.append(name)


@pytest.mark.parametrize(
    ("asked", "where", "said"),
    [
        ({"selection": {"size": 1_000_000}}, "selection.size", "asks for 1,000,000 edges and this graph has 190"),
        ({"selection": {"size": 0.001}}, "selection.size", "0.001 of 190 edges is less than one edge"),
        ({"method": {"name": "edge-pruning", "edges": 191}}, "method.edges", "191 edges and the search has 190"),
        (
            {"method": {"name": "acdc", "edges": 50, "warm_start": 0.2}, "selection": {}},
            "method.edges",
            "asks for 50 edges and the search has 38 to keep: ask for fewer or raise `warm_start`",
        ),
        (
            {"method": {"name": "ensemble", "methods": ["exact", {"name": "edge-pruning", "edges": 300}]}},
            "method.methods.1.edges",
            "asks for 300 edges and the search has 190 to keep",
        ),
    ],
)
def test_what_the_graph_cannot_give_is_refused_before_the_search(
    model: Any, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any], where: str, said: str
) -> None:
    progress = Phases()
    with pytest.raises(TaskError, match="graph of 190 edges") as caught:
        discover(model, tokenizer, progress=progress, **asked)
    (fault,) = caught.value.faults
    assert fault.where == where
    assert said in fault.message
    assert progress.names[-1] == "clean and ablated runs", "the setting is made and nothing is searched"


def test_all_that_the_graph_cannot_give_is_told_at_once(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TaskError) as caught:
        discover(model, tokenizer, method={"name": "edge-pruning", "edges": 191}, selection={"size": 200})
    assert [fault.where for fault in caught.value.faults] == ["selection.size", "method.edges"]


def test_a_size_beyond_the_edges_that_have_a_score_is_told(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    found = discover(model, tokenizer, method={"name": "exact", "receivers": 3}, selection={"size": 0.5})
    n_scored = int(found.tested.sum())
    assert n_scored < 95 == found.selected.asked_for
    said = f"selection.size asks for 95 edges and {n_scored} have a score: all of these are taken"
    assert said in found.provenance.run.notes
    within = discover(model, tokenizer, method={"name": "exact", "receivers": 3}, selection={"size": 2})
    assert not any("selection.size" in note for note in within.provenance.run.notes)


def test_an_evaluation_refuses_a_size_of_no_edge(tokenizer: PreTrainedTokenizerFast, circuit: Circuit) -> None:
    asked = {"kind": "evaluate", "circuit": "stored", "selection": {"size": 0.001}}
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, asked))
    with pytest.raises(TaskError, match="less than one edge"):
        run_on(describe_loaded(tiny("llama", torch.float32), tokenizer), spec, Quiet(), circuit)


def test_an_evaluation_on_other_weights_says_so(tokenizer: PreTrainedTokenizerFast, circuit: Circuit) -> None:
    other = describe_loaded(tiny("llama", torch.float32, seed=1), tokenizer)
    spec = parse_job(with_defaults_of(circuit.provenance.run.spec, {"kind": "evaluate", "circuit": "stored"}))
    (result,) = run_on(other, spec, Quiet(), circuit)
    assert result.circuit is not None
    assert "other weights" in result.circuit.provenance.run.notes[0]
    assert not circuit.provenance.run.notes


def test_a_circuit_is_not_tried_on_other_weights(tokenizer: PreTrainedTokenizerFast, circuit: Circuit) -> None:
    other = describe_loaded(tiny("llama", torch.float32, seed=1), tokenizer)
    spec = parse_job({"kind": "try", "circuit": "stored", "prompt": "w3 w4"})
    with pytest.raises(GraphMismatch, match="found on other weights"):
        run_on(other, spec, Quiet(), circuit)


def test_a_file_with_other_types_or_counts_is_refused(circuit: Circuit) -> None:
    spoilt = {
        "are said to be kept": replace(circuit, selected=replace(circuit.selected, connected=7)),
        "never tested": replace(circuit, tested=np.zeros_like(circuit.tested)),
        "scores is float64": replace(circuit, scores=circuit.scores.astype(np.float64)),
        "inclusion is float64": replace(circuit, inclusion=circuit.inclusion.astype(np.float64)),
    }
    for message, one in spoilt.items():
        with pytest.raises(CircuitFileError, match=message):
            Circuit.from_bytes(one.to_bytes())


def test_a_faithfulness_that_no_size_reaches_is_said_with_the_circuit(
    model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = discover(model, tokenizer, selection={"faithfulness": 1.0}, evaluation={**SMALL, "grid": [0.05, 0.1]})
    assert any("k* was looked for instead" in note for note in found.provenance.run.notes)


def test_a_circuit_without_scores_cannot_be_cut_to_another_size(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    loaded = describe_loaded(model, tokenizer)
    asked = {"task": {"name": "custom", "pairs": rows(), "prompts": 16, "held_out": 8}, "model": loaded.card.reference}
    spec = {"kind": "evaluate", **asked, "evaluation": SMALL}
    (written,) = run_on(loaded, parse_job({**spec, "hypothesis": {"nodes": ["mlp0"]}}), Quiet())
    for selection in ({"size": 5}, {"faithfulness": 0.5}):
        with pytest.raises(TaskError, match="no scores"):
            run_on(loaded, parse_job({**spec, "circuit": "c", "selection": selection}), Quiet(), written.circuit)


def test_a_fuller_evaluation_keeps_what_the_circuits_job_asked_for() -> None:
    own = parse_job({"evaluation": {"grid": [0.01, 0.5], "random_circuits": 3, "also_under": ["zero"]}})
    stored = own.model_dump(mode="json")
    fuller = parse_job(with_defaults_of(stored, {"kind": "evaluate", "circuit": "c", "evaluation": "full"}))
    assert fuller.evaluation.extent == "full"
    assert (fuller.evaluation.grid, fuller.evaluation.random_circuits) == ((0.01, 0.5), 3)
    assert fuller.evaluation.also_under == ("zero",)
