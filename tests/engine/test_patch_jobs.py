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
from acdc.map_cost import cells_of_map
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
from acdc.tracing.causal import ANSWER_PROBABILITY, Corruption, Restored, trace_causes
from acdc.tracing.knockout import knock_out_attention
from acdc.tracing.paths import NodeSet, each, patch_paths
from acdc.tracing.places import make_places

BYTES, N = 2**26, 8
QUICK = {"name": "causes", "samples": 2}
PAPER = (
    Restored("residual_after", 1),
    Restored("residual_after", 1, ("mlp",)),
    Restored("residual_after", 1, ("attention",)),
    Restored("mlp", 10),
    Restored("attention", 10),
)


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
            corruption = Corruption("subject", sigma=3.0, samples=2, seed=3)
            common |= {"corruption": corruption, "restored": PAPER, "places": roles}
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
    assert senders.labels == tuple(sender.name for sender in graph.senders)
    assert receivers.labels == ("mlp0", "mlp1", "mlp2", "logits+mlp0")
    assert not found.cells.defined[senders.labels.index("mlp1"), 0]


def test_words_in_a_set_are_all_their_nodes_at_once(model: Any, tokenizer: Any) -> None:
    """As if every name were written out."""
    graph = wrap(model).graph
    heads, mlps = ([sender.name for sender in graph.senders if sender.kind == kind] for kind in ("head", "mlp"))
    for word, names in ((["heads"], heads), ({"label": "x", "nodes": ["mlps", "1.0"]}, [*mlps, "1.0"])):
        found, wanted = (patch(model, tokenizer, {"name": "paths", "senders": [one]}) for one in (word, names))
        assert found.axes[1].labels == ("heads together" if word == ["heads"] else "x",)
        assert np.array_equal(found.effect, wanted.effect)
    every = patch(model, tokenizer, {"name": "paths", "senders": [["all"]], "receivers": [["all"]], "between": "free"})
    assert every.shape == (1, 1, 1)
    assert np.allclose(every.normalised("logit_diff").denominator, every.effect, atol=1e-4)  # all paths: the other run


@pytest.mark.parametrize(
    "sides",
    [
        {},
        {"senders": ["all"], "receivers": ["all"]},
        {"senders": "heads", "receivers": "heads"},
        {"senders": [["heads"], "mlps"], "receivers": [["1.0", "mlp2"], "mlps", "logits"]},
        {"senders": [{"label": "x", "nodes": ["mlps", "2.0"]}, "embed"], "receivers": [["heads"], "0.1", "2.3.q"]},
    ],
)
def test_plan_counts_the_cells_that_a_map_has(model: Any, tokenizer: Any, sides: dict[str, Any]) -> None:
    asked = {"name": "paths", **sides}
    spec = parse_job({"kind": "patch", "map": asked})
    assert spec.kind == "patch"
    assert cells_of_map(spec, wrap(model).graph, 5) == patch(model, tokenizer, asked).cells.defined.sum()


def test_all_pairs_of_heads_are_one_matrix(model: Any, tokenizer: Any) -> None:
    found = patch(model, tokenizer, {"name": "paths", "senders": "heads", "receivers": "heads"})
    (_, senders, receivers), n = found.axes, wrap(model).graph.shape.n_heads
    assert senders.labels == receivers.labels
    assert found.cells.defined.sum() == 3 * n * n  # three layers: each head to all heads of later ones


def test_paper_on_causal_tracing_is_measured_by_the_probability_of_the_answer(model: Any, tokenizer: Any) -> None:
    found = patch(model, tokenizer, QUICK, metric="answer_probability")
    assert found.cells.metrics == (ANSWER_PROBABILITY.name,)
    assert 0 < found.cells.clean.min() <= found.cells.clean.max() < 1


def test_two_subjects_from_the_corrupt_prompt_give_two_maps(model: Any, tokenizer: Any) -> None:
    asked = {"name": "causes", "sigma": None, "restored": [{"state": "residual_after"}]}
    rows_of = [
        {**row, "corrupt": other["corrupt"]} for row, other in zip(with_subject(), with_subject()[1:], strict=False)
    ]
    found = {
        subject: acdc.patch(model, tokenizer, rows_of, map={**asked, "subject": subject}).cells
        for subject in ("subject", "front", None)
    }
    assert [cells.parameters["subject"] for cells in found.values()] == ["subject", "front", None]
    assert np.abs(found["subject"].corrupt - found["front"].corrupt).max() > 1e-3
    assert np.abs(found["front"].corrupt - found[None].corrupt).max() > 1e-3


def test_corrupt_prompt_may_stand_for_the_noise(model: Any, tokenizer: Any) -> None:
    everything = {"name": "causes", "sigma": None, "restored": [{"state": "residual_before"}], "places": "all"}
    cells = patch(model, tokenizer, everything).cells
    assert np.abs(cells.corrupt - cells.clean).max() > 1e-3
    assert np.allclose(cells.per_example, cells.clean[:, None, None, None], atol=1e-5)  # all restored: the clean run


def test_papers_rows_are_those_that_a_model_has(tokenizer: Any) -> None:
    attention_only = tiny("toy-attention-only", torch.float32)
    labels = patch(attention_only, tokenizer, QUICK).axes[1].labels
    assert labels == ("residual_after", "residual_after, attention severed", "attention, 10 layers")
    asked = {**QUICK, "restored": [{"state": "residual_after", "severed": "mlp"}]}
    with pytest.raises(TaskError, match="residual_after, mlp severed: what can be severed in this model: attention"):
        patch(attention_only, tokenizer, asked)


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
        ({"name": "paths", "senders": ["mlp2"], "receivers": ["0.1", "1.1.k"]}, TaskError, "are they swapped"),
        ({"name": "knockout", "heads": ["7.0"]}, GraphMismatch, "7.0"),
        ({"name": "knockout", "blocked": [["end", "verb"]]}, TaskError, "verb"),
        ({"name": "knockout", "blocked": [["end", "verb"]], "heads": ["7.0"]}, TaskError, "(?s)verb.*7.0"),
        ({"name": "causes", "subject": "verb", "roles": ["end", "noun"]}, TaskError, "(?s)verb.*noun"),
        (
            {"name": "causes", "sigma": None, "subject": "end"},
            TaskError,
            "(?s)prompt 1: .*differs: subject, front.*prompt 8",
        ),
        (
            {"name": "paths", "senders": ["heads", "1.1"]},
            TaskError,
            r"map\.senders: asked for twice: 1\.1; leave one out",
        ),
        (
            {"name": "paths", "senders": ["heads", {"label": "0.1", "nodes": ["2.2"]}], "receivers": ["all", "mlps"]},
            TaskError,
            r"(?s)map\.senders: asked for twice: 0\.1;.*map\.receivers: asked for twice: mlp0, mlp1, mlp2;",
        ),
        ({"name": "paths", "senders": ["all", "heads", "9.9"]}, TaskError, r"(?s)twice: 0\.0, .* and 2 more;.*9\.9"),
    ],
)
def test_what_needs_the_model_is_told_with_every_name(
    model: Any, tokenizer: Any, map: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        patch(model, tokenizer, map)


def test_prompts_without_roles_say_how_to_give_them(model: Any, tokenizer: Any) -> None:
    with pytest.raises(TaskError, match=r"(?s)no role to look at but their end: give spans.*7\.0: no such head"):
        acdc.patch(model, tokenizer, rows(), map={"name": "knockout", "heads": ["7.0"]})
    with pytest.raises(TaskError, match=r"Name one as map\.subject \(the prompts have: end\)"):
        acdc.patch(model, tokenizer, rows(), map="causes")


def test_metric_of_two_answers_needs_both(model: Any, tokenizer: Any) -> None:
    one_sided = [{**row, "wrong": ()} for row in with_subject()]
    said = "rows 1, 2, 3, 4, 5, 6, 7, 8 of 8 have none: give `wrong` there or leave them out"
    for ask in (acdc.patch, acdc.discover):
        with pytest.raises(SpecError, match=said):
            ask(model, tokenizer, one_sided)


# -- without corrupt prompts -------------------------------------------------------------------------------------------


def without_corrupt(n: int = N) -> list[dict[str, Any]]:
    """Rows of which none has a corrupt prompt of use: none at all, one of another length, the clean one."""
    given = [None, "w3 w4", "clean"]
    found = []
    for i, row in enumerate(with_subject(n)):
        corrupt = given[i % 3]
        found.append({**row, "corrupt": row["clean"] if corrupt == "clean" else corrupt})
    return found


def test_noise_gives_the_same_map_with_and_without_corrupt_prompts(model: Any, tokenizer: Any) -> None:
    asked = {**QUICK, "subject": "subject"}
    found = acdc.patch(model, tokenizer, without_corrupt(), map=asked)
    assert found.provenance is not None
    assert (found.provenance.task.n_search, found.provenance.task.n_dropped) == (N, 0)
    assert np.array_equal(found.effect, patch(model, tokenizer, asked).effect)


def test_noise_without_corrupt_prompts_needs_its_subject_named(model: Any, tokenizer: Any) -> None:
    with pytest.raises(TaskError, match=r"there are no corrupt prompts, so which is the subject\? Name one as map"):
        acdc.patch(model, tokenizer, without_corrupt(), map=QUICK)
    some = [*with_subject()[:2], *without_corrupt()[2:]]
    assert acdc.patch(model, tokenizer, some, map=QUICK).cells.parameters["subject"] == "subject"


@pytest.mark.parametrize("n_with", [0, 3])
def test_knockout_without_corrupt_prompts_says_that_it_is_not_normalised(
    model: Any, tokenizer: Any, n_with: int
) -> None:
    found = acdc.patch(model, tokenizer, [*with_subject()[:n_with], *without_corrupt()[n_with:]], map="knockout")
    assert np.array_equal(found.effect, patch(model, tokenizer, "knockout").effect)
    assert found.normalised("logit_diff").withheld
    assert found.provenance is not None
    without = f"{N - n_with} of 8 prompts have no corrupt one: there is nothing to normalise by"
    assert found.provenance.run.notes == (without,)
    with_all = patch(model, tokenizer, "knockout").provenance
    assert with_all is not None
    assert with_all.run.notes == ()


@pytest.mark.parametrize("map", ["activations", "paths", {"name": "causes", "sigma": None}])
def test_maps_that_take_corrupt_values_drop_rows_without_them(model: Any, tokenizer: Any, map: object) -> None:
    with pytest.raises(TaskError, match="too few usable rows: 0 of 8") as caught:
        acdc.patch(model, tokenizer, without_corrupt(), map=map)
    reasons = " ".join(fault.message for fault in caught.value.faults)
    assert all(reason in reasons for reason in ("`corrupt` is missing", "agree in length", "are the same"))


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
