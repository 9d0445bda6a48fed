"""patch jobs in one process: from a spec to the map that the tracing functions give for the same choices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_library import rows, words_tokenizer
from tiny_transformers import tiny
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

import acdc
from acdc.errors import GraphMismatch, SpecError, TaskError, UnsupportedModel
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.loading import describe_loaded
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import make_batches
from acdc.pipeline import run_on
from acdc.progress import Quiet
from acdc.prompting import build_prompts
from acdc.spec import MAP_SPECS, parse_job
from acdc.tracing.activation import patch_activations
from acdc.tracing.causal import ANSWER_PROBABILITY, PAPER, Corruption, trace_causes
from acdc.tracing.knockout import knock_out_attention
from acdc.tracing.paths import NodeSet, all_senders, each, patch_paths
from acdc.tracing.places import make_places

BYTES, N = 2**26, 8
QUICK = {"name": "causes", "samples": 2}


def with_subject(n: int = N) -> list[dict[str, Any]]:
    """Rows of five words that differ in the second one, which is the subject."""
    found = []
    for i, row in enumerate(rows(n)):
        words = row["clean"].split()
        corrupt = [words[0], f"w{3 + i}", *words[2:]]
        start = len(words[0]) + 1
        spans = {"subject": (start, start + len(words[1])), "front": (0, start + len(words[1]))}
        found.append({**row, "corrupt": " ".join(corrupt), "spans": spans})
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny("llama", torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return words_tokenizer()


def patch(model: Any, tokenizer: Any, map: object, **spec: Any) -> PatchMap:
    return acdc.patch(model, tokenizer, with_subject(), map=map, compute={"memory_bytes": BYTES}, **spec)


def by_hand(model: Any, tokenizer: Any, which: str) -> Cells:
    """The same map by the engine's own functions."""
    spec = parse_job({"kind": "patch", "task": {"name": "custom", "pairs": with_subject()}})
    assert spec.kind == "patch"
    t, pairs = wrap(model), build_prompts(tokenizer, spec).search
    common: Any = {"memory_bytes": BYTES, "progress": Quiet()}
    batches, metrics = make_batches(t, pairs, 512, BYTES), [METRICS["logit_diff"]]
    roles = make_places(pairs, "role")
    heads = each(sender.name for sender in t.graph.senders if sender.kind == "head")
    match which:
        case "activations":
            common |= {"kind": "head", "places": roles, "direction": "denoising"}
            return patch_activations(t, pairs, batches, metrics, **common)
        case "paths":
            logits = [NodeSet("logits", ("logits",))]
            common |= {"senders": heads, "receivers": logits, "between": "heads", "direction": "noising"}
            return patch_paths(t, pairs, batches, metrics, **common)
        case "causes":
            common |= {"corruption": Corruption("subject", samples=2, seed=3), "restored": PAPER, "places": roles}
            return trace_causes(t, pairs, batches, metrics, **common)
        case _:
            common |= {"blocked": [("end", "front"), ("end", "subject")], "window": 5, "heads": None}
            return knock_out_attention(t, pairs, batches, metrics, **common)


@pytest.mark.parametrize("which", MAP_SPECS)
def test_map_is_that_of_the_tracing_function_with_the_defaults(model: Any, tokenizer: Any, which: str) -> None:
    asked = QUICK if which == "causes" else which
    found, wanted = patch(model, tokenizer, asked, seed=3), by_hand(model, tokenizer, which)
    assert found.axes == wanted.axes
    assert np.array_equal(found.cells.per_example, wanted.per_example)
    assert found.cells.parameters == wanted.parameters
    assert found.effect.any()


def test_map_carries_what_its_numbers_depend_on(model: Any, tokenizer: Any) -> None:
    made = patch(model, tokenizer, {"state": "mlp", "direction": "noising"}, name="mine").provenance
    assert made is not None
    assert made.model.parity is not None
    assert made.model.parity < 1e-4
    assert (made.task.n_search, made.task.n_held_out, made.task.groups_held_out) == (N, 0, ())
    assert (made.choices.method, made.choices.ablation) == ("activations", "resample")
    assert (made.choices.granularity, made.choices.positions) == ("layer x place", "role")
    assert made.choices.direction == "one thing at a time of the corrupt run is put into the clean run"
    assert made.choices.parameters["state"] == "mlp"
    assert (made.run.spec["kind"], made.run.spec["name"]) == ("patch", "mine")


def test_map_measures_on_every_group_and_holds_nothing_out(model: Any, tokenizer: Any) -> None:
    found = patch(model, tokenizer, "activations")
    assert sorted(found.cells.groups) == sorted(row["group"] for row in with_subject())
    few = patch(model, tokenizer, "activations", task={"prompts": 5})
    assert len(few.cells.groups) == 5


def test_model_is_left_as_it_was_found(tokenizer: Any) -> None:
    model = tiny("llama", torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    for which in ("activations", QUICK, "knockout"):
        patch(model, tokenizer, which)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_words_stand_for_every_node_of_their_kind(model: Any, tokenizer: Any) -> None:
    graph = wrap(model).graph
    asked = {"name": "paths", "senders": ["all"], "receivers": ["mlps", ["logits", "mlp0"]], "between": "free"}
    found = patch(model, tokenizer, asked)
    _, senders, receivers = found.axes
    assert senders.labels == tuple(one.label for one in all_senders(graph))
    assert receivers.labels == ("mlp0", "mlp1", "mlp2", "logits+mlp0")
    assert not found.cells.defined[senders.labels.index("mlp1"), 0]


def test_all_pairs_of_heads_are_one_matrix(model: Any, tokenizer: Any) -> None:
    found = patch(model, tokenizer, {"name": "paths", "senders": "heads", "receivers": "heads"})
    (_, senders, receivers), n = found.axes, wrap(model).graph.shape.n_heads
    assert senders.labels == receivers.labels
    assert found.cells.defined.sum() == 3 * n * n  # three layers: each head to all heads of later ones


def test_paper_on_causal_tracing_is_measured_by_the_probability_of_the_answer(model: Any, tokenizer: Any) -> None:
    found = patch(model, tokenizer, QUICK, metric="answer_probability")
    assert found.cells.metrics == (ANSWER_PROBABILITY.name,)
    assert 0 < found.cells.clean.min() <= found.cells.clean.max() < 1


def test_corrupt_prompt_may_stand_for_the_noise(model: Any, tokenizer: Any) -> None:
    everything = {"name": "causes", "sigma": None, "restored": [{"state": "residual_before"}], "places": "all"}
    cells = patch(model, tokenizer, everything).cells
    assert np.abs(cells.corrupt - cells.clean).max() > 1e-3
    assert np.allclose(cells.per_example, cells.clean[:, None, None, None], atol=1e-5)  # all restored: the clean run


def test_recurrent_model_has_a_residual_stream_to_patch(tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, expand=2)
    mamba = MambaForCausalLM(config).eval()
    found = patch(mamba, tokenizer, {"state": "residual_before", "places": "all"})
    assert np.allclose(found.cells.per_example, found.cells.clean[:, None, None], atol=1e-5)
    assert found.provenance is not None
    assert "from outside" in found.provenance.run.notes[0]
    with pytest.raises(UnsupportedModel, match="residual stream can be patched: map activations, state residual_"):
        patch(mamba, tokenizer, "paths")


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("map", "error", "says"),
    [
        ({"roles": ["verb", "subject"]}, TaskError, "verb: 8 prompts have no such role .* front, subject, end"),
        ({"name": "paths", "senders": ["9.9", "mlp7"]}, GraphMismatch, "(?s)9.9.*mlp7"),
        ({"name": "knockout", "heads": ["7.0"]}, GraphMismatch, "7.0"),
        ({"name": "knockout", "blocked": [["end", "verb"]]}, TaskError, "verb"),
        ({"name": "causes", "subject": "verb", "roles": ["end", "noun"]}, TaskError, "(?s)verb.*noun"),
    ],
)
def test_what_needs_the_model_is_told_with_every_name(
    model: Any, tokenizer: Any, map: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        patch(model, tokenizer, map)


def test_prompts_without_roles_say_how_to_give_them(model: Any, tokenizer: Any) -> None:
    with pytest.raises(TaskError, match=r"give spans, or name map\.blocked"):
        acdc.patch(model, tokenizer, rows(), map="knockout")
    with pytest.raises(TaskError, match=r"Name one as map\.subject; the prompts have: end"):
        acdc.patch(model, tokenizer, rows(), map="causes")


def test_metric_of_two_answers_needs_both(model: Any, tokenizer: Any) -> None:
    one_sided = [{**row, "wrong": ()} for row in with_subject()]
    with pytest.raises(TaskError, match="8 prompts have no wrong ones"):
        acdc.patch(model, tokenizer, one_sided)


def test_task_and_pairs_do_not_go_together(model: Any, tokenizer: Any) -> None:
    with pytest.raises(SpecError, match="either pairs or task='ioi'"):
        acdc.patch(model, tokenizer, with_subject(), task="ioi")


def test_subject_is_the_shortest_role_that_holds_the_change(model: Any, tokenizer: Any) -> None:
    found = patch(model, tokenizer, QUICK)
    assert found.cells.parameters["subject"] == "subject"


def test_spec_and_model_in_memory_give_a_result_called_map(model: Any, tokenizer: Any) -> None:
    loaded = describe_loaded(model, tokenizer)
    task = {"name": "custom", "pairs": with_subject()}
    spec = parse_job({"kind": "patch", "model": loaded.card.reference, "task": task})
    [result] = run_on(loaded, spec, Quiet())
    assert (result.key, result.circuit) == ("map", None)
    assert result.patch_map is not None
    again = PatchMap.from_bytes(result.patch_map.to_bytes())
    assert again.provenance == result.patch_map.provenance
    assert np.array_equal(again.effect, result.patch_map.effect)
