"""Causal tracing: against hooks on the Hugging Face model, and against what must hold by definition."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from hooked import exact_arithmetic, hooked, see_state
from known_induction import induction_with
from tiny_transformers import random_pairs, tiny
from torch import Tensor

from acdc.errors import OutOfMemory, TaskError
from acdc.evaluation.truth.hand_wired import induction_model
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import make_batches
from acdc.patching.reruns import Run, record_run
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair, Tokens
from acdc.tracing import causal
from acdc.tracing.causal import ANSWER_PROBABILITY, Corruption, Restored, embedding_std, trace_causes
from acdc.tracing.places import make_places
from acdc.tracing.windows import window_around

MEMORY = 2**30
NOISE = Corruption("subject", sigma=3.0, samples=2, seed=5)
TOKENS = replace(NOISE, sigma=None)  # those of the corrupt prompt
STREAM = Restored("residual_after", 1)
ROWS = [
    STREAM,
    Restored("residual_after", 1, ("mlp",)),
    Restored("residual_after", 1, ("attention",)),
    Restored("mlp", 3),
    Restored("attention", 3),
]
METRIC_AND_PROBABILITY = [METRICS["logit_diff"], ANSWER_PROBABILITY]


def facts(n: int, lengths: tuple[int, ...] = (6,)) -> list[Pair]:
    """Prompts with a subject of two tokens somewhere after the first; in the corrupt prompt only these differ."""
    pairs = []
    for i, pair in enumerate(random_pairs(n, lengths)):
        span = (1 + i % 2, 3 + i % 2)
        corrupt = (*pair.clean[: span[0]], *pair.corrupt[slice(*span)], *pair.clean[span[1] :])
        pairs.append(replace(pair, corrupt=corrupt, roles={"subject": span, "end": pair.roles["end"]}))
    return pairs


def trace(t: Transformer, pairs: list[Pair], **options: object) -> Cells:
    batches = make_batches(t, pairs, int(options.pop("batch_tokens", 512)), MEMORY)  # type: ignore[call-overload]
    settings = {
        "corruption": NOISE,
        "restored": ROWS,
        "places": options.get("places") or make_places(pairs, "role"),
        "memory_bytes": MEMORY,
        "progress": Quiet(),
        **options,
    }
    return trace_causes(t, pairs, batches, METRIC_AND_PROBABILITY, **settings)  # type: ignore[arg-type]


def noise_of(t: Transformer, pair: Pair, number: int, sample: int) -> Tensor:
    """What the noise adds to the embeddings of one prompt, made anew: [1, pos, d]."""
    noise = torch.zeros(1, len(pair.clean), t.d_model, dtype=t.dtype)
    first, stop = pair.roles["subject"]
    drawn = np.random.default_rng([5, sample, number]).standard_normal((stop - first, t.d_model))
    noise[0, first:stop] = 3.0 * embedding_std(t) * torch.from_numpy(drawn)
    return noise


class Noised:
    """One prompt, what follows it, and its noise [sample, pos of the prompt, d]: runs of the model itself in which
    states are restored, by one hook for each layer of a window."""

    def __init__(self, t: Transformer, pair: Pair, noise: Tensor, continuation: Tokens = ()) -> None:
        n = len(pair.clean) + len(continuation)  # the end is also where the rest of the answer is read
        self.t, self.spans = t, {**pair.roles, "all": (0, n), "end": (len(pair.clean) - 1, n)}
        self.tokens = torch.tensor([(*pair.clean, *continuation)] * len(noise))
        self.noise = torch.nn.functional.pad(noise, (0, 0, 0, len(continuation)))
        self.clean, self.corrupted = cache(self._clean), cache(self._corrupted)

    def _clean(self, state: str, layer: int) -> Tensor:
        return see_state(self.t, self.tokens, (state, layer, 0))

    def _corrupted(self, state: str, layer: int) -> Tensor:
        with self._noise():
            return see_state(self.t, self.tokens, (state, layer, 0))

    @contextmanager
    def _noise(self) -> Iterator[None]:
        embeddings = self.t.module.get_input_embeddings()  # type: ignore[operator]
        handle = embeddings.register_forward_hook(lambda module, args, out: out + self.noise)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def logprobs(self, one: Restored | None, layer: int, role: str) -> Tensor:
        """[sample, pos, vocab]"""
        where = torch.zeros(self.tokens.shape, dtype=torch.bool)
        where[:, slice(*self.spans[role])] = True
        n, values = self.t.n_layers, {}
        if one is not None:
            values = {(one.state, i): self.clean(one.state, i) for i in window_around(layer, one.window, n)}
            values |= {(kind, i): self.corrupted(kind, i) for kind in one.severed for i in range(n)}
        with ExitStack() as hooks:
            hooks.enter_context(self._noise())
            for (state, i), value in values.items():
                put = partial(torch.where, where[..., None], value)
                hooks.enter_context(hooked(self.t, (state, i, 0), put))
            logits: Tensor = self.t.module(self.tokens).logits
        return logits.log_softmax(-1)


class Oracle:
    """Both metrics of one prompt with one right and one wrong answer, as means over the noise samples."""

    def __init__(self, t: Transformer, pair: Pair, number: int, n_samples: int = 2) -> None:
        noise = torch.cat([noise_of(t, pair, number, sample) for sample in range(n_samples)])
        self.pair = pair
        self.runs = {rest: Noised(t, pair, noise, rest) for answer in self.answers for rest in [answer[:-1]]}

    @property
    def answers(self) -> tuple[Tokens, Tokens]:
        return self.pair.answers[0], self.pair.wrong[0]

    def metrics(self, one: Restored | None = None, layer: int = 0, role: str = "end") -> list[float]:
        found = {rest: run.logprobs(one, layer, role) for rest, run in self.runs.items()}
        end = len(self.pair.clean) - 1
        right, wrong = (
            sum(found[answer[:-1]][:, end + step, token] for step, token in enumerate(answer))
            for answer in self.answers
        )
        assert isinstance(right, Tensor)
        return [float((right - wrong).mean()), float(right.exp().mean())]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma3", "toy-bidirectional"])
def test_every_cell_is_the_mean_of_noised_runs_with_hooks_that_restore(name: str) -> None:
    model, pairs = tiny(name), facts(2, (5, 6))
    restored = [
        *ROWS[1:3],
        Restored("residual_after", 2, ("mlp", "attention")),
        Restored("mlp", 2),
        Restored("attention", 3),
        Restored("residual_before", 2),
    ]
    with exact_arithmetic(model):
        t = wrap(model)
        cells = trace(t, pairs, restored=restored)
        assert_as_the_oracle_says(t, pairs, cells, restored)


def assert_as_the_oracle_says(t: Transformer, pairs: list[Pair], cells: Cells, restored: list[Restored]) -> None:
    for number, pair in enumerate(pairs):
        oracle = Oracle(t, pair, number)
        assert np.abs(cells.corrupt[:, number] - oracle.metrics()).max() < 1e-8
        for index, one in enumerate(restored):
            for layer in range(t.n_layers):
                for place, role in enumerate(cells.axes[3].labels):
                    expected = oracle.metrics(one, layer, role)
                    found = cells.per_example[:, index, layer, place, number]
                    assert np.abs(found - expected).max() < 1e-8, (one.label, layer, role)


@pytest.mark.parametrize("places", ["subject", "end", "all"])
def test_answers_of_two_tokens_are_traced_as_they_are_forced(places: str) -> None:
    """Each in a row of its own, with the noise of its prompt; end and every position are those of the answer too."""
    model = tiny("llama")
    pairs = [replace(pair, answers=((3 + i, 4),), wrong=((9, 10 + i),)) for i, pair in enumerate(facts(2, (5, 6)))]
    with exact_arithmetic(model):
        t = wrap(model)
        cells = trace(t, pairs, places=make_places(pairs, "role", [places]))
        assert_as_the_oracle_says(t, pairs, cells, ROWS)
    assert np.abs(cells.per_example - cells.corrupt[:, None, None, None]).max() > 1e-3


def test_without_noise_nothing_has_an_effect() -> None:
    t, pairs = wrap(tiny("gpt2")), facts(3)
    cells = trace(t, pairs, corruption=replace(NOISE, sigma=0.0))
    assert np.abs(PatchMap.of(cells, seed=0).effect).max() < 1e-12
    assert np.abs(cells.clean - cells.corrupt).max() < 1e-12
    assert cells.facts["noise_standard_deviation"] == 0.0


@pytest.mark.parametrize("corruption", [NOISE, TOKENS])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
def test_restoring_the_stream_in_all_layers_at_all_subject_tokens_gives_the_clean_value(
    name: str, corruption: Corruption
) -> None:
    t, pairs = wrap(tiny(name)), facts(4, (5, 7))
    cells = trace(t, pairs, corruption=corruption, restored=[Restored("residual_before", 2 * t.n_layers)])
    subject = cells.axes[3].labels.index("subject")
    assert np.abs(cells.per_example[:, 0, :, subject] - cells.clean[:, None]).max() < 1e-10
    assert np.abs(cells.clean - cells.corrupt).max() > 1e-3


def test_restoring_everything_everywhere_after_any_layer_gives_the_clean_value() -> None:
    t, pairs = wrap(tiny("qwen3")), facts(2)
    cells = trace(t, pairs, restored=[STREAM], places=make_places(pairs, "all"))
    assert np.abs(cells.per_example - cells.clean[:, None, None, None]).max() < 1e-10


def other_prompts(n: int) -> list[Pair]:
    """Corrupt prompts with other tokens everywhere, and a second role beside the subject."""
    return [replace(pair, roles={"subject": (1, 3), "verb": (3, 4), "end": (5, 6)}) for pair in random_pairs(n)]


def spliced(pairs: list[Pair], role: str) -> list[Pair]:
    """With corrupt prompts that differ from the clean ones at a role alone."""
    found = []
    for pair in pairs:
        start, stop = pair.roles[role]
        corrupt = (*pair.clean[:start], *pair.corrupt[start:stop], *pair.clean[stop:])
        found.append(replace(pair, corrupt=corrupt))
    return found


@pytest.mark.parametrize("role", ["subject", "verb"])
def test_without_noise_the_subject_alone_comes_from_the_corrupt_prompt(role: str) -> None:
    model, pairs = tiny("gemma3"), other_prompts(3)
    with exact_arithmetic(model), torch.no_grad():
        cells = trace(wrap(model), pairs, corruption=replace(TOKENS, role=role))
        for number, pair in enumerate(spliced(pairs, role)):
            logits = model(torch.tensor([pair.corrupt])).logits[0, -1]
            expected = float(logits[pair.answers[0][0]] - logits[pair.wrong[0][0]])
            assert cells.corrupt[0, number] == pytest.approx(expected, abs=1e-8)
    assert (cells.parameters["subject"], cells.parameters["corruption"]) == (role, "corrupt prompt")


def test_without_noise_and_subject_the_whole_corrupt_prompt_is_run() -> None:
    model, pairs = tiny("gemma3"), [replace(pair, roles={}) for pair in other_prompts(2)]
    with exact_arithmetic(model), torch.no_grad():
        cells = trace(wrap(model), pairs, corruption=replace(TOKENS, role=None), places=make_places(pairs, "position"))
        logits = model(torch.tensor([pair.corrupt for pair in pairs])).logits[:, -1]
    expected = [float(row[pair.answers[0][0]] - row[pair.wrong[0][0]]) for row, pair in zip(logits, pairs, strict=True)]
    assert np.abs(cells.corrupt[0] - expected).max() < 1e-8
    assert cells.parameters["subject"] is None


def test_two_subjects_are_two_corruptions() -> None:
    t, pairs = wrap(tiny("llama")), other_prompts(2)
    by_role = [trace(t, pairs, corruption=replace(TOKENS, role=role)) for role in ("subject", "verb")]
    assert np.abs(by_role[0].corrupt - by_role[1].corrupt).min() > 1e-6
    assert np.abs(by_role[0].per_example - by_role[1].per_example).max() > 1e-3


def test_prompts_that_a_subject_does_not_corrupt_are_named_with_the_roles_that_do() -> None:
    t, pairs = wrap(tiny("gpt2")), other_prompts(4)
    pairs[1] = spliced(pairs, "verb")[1]
    pairs[3] = replace(pairs[3], corrupt=pairs[3].clean)
    with pytest.raises(TaskError) as caught:
        trace(t, pairs, corruption=TOKENS)
    assert [str(fault) for fault in caught.value.faults] == [
        "prompt 2: the corrupt prompt has the same tokens at 'subject'; roles at which it differs: verb",
        "prompt 4: the corrupt prompt has the same tokens at 'subject'; roles at which it differs: none",
    ]
    trace(t, pairs, corruption=NOISE)  # which needs none


@pytest.mark.parametrize("name", ["llama", "toy-bidirectional"])
def test_token_replacement_is_denoising_activation_patching(name: str) -> None:
    from acdc.tracing.activation import patch_activations

    t, pairs = wrap(tiny(name)), other_prompts(3)
    replaced = spliced(pairs, "subject")
    expected = patch_activations(
        t,
        replaced,
        make_batches(t, replaced, 512, MEMORY),
        METRIC_AND_PROBABILITY,
        kind="residual_after",
        places=make_places(pairs, "role"),
        direction="denoising",
        memory_bytes=MEMORY,
        progress=Quiet(),
    )
    for asked, corruption in ((pairs, TOKENS), (replaced, TOKENS), (replaced, replace(TOKENS, role=None))):
        cells = trace(t, asked, corruption=corruption, restored=[STREAM])
        assert np.abs(cells.per_example[:, 0] - expected.per_example).max() < 1e-10
        assert np.abs(cells.corrupt - expected.corrupt).max() < 1e-10


def found_cells(cells: Cells) -> dict[tuple[str, str, str], float]:
    """Normalised effects of the cells that are not 0, by restored state, layer and place."""
    shares = PatchMap.of(cells, seed=0).normalised("logit_diff").effect
    assert shares is not None
    labels = [axis.labels for axis in cells.axes[1:]]
    return {
        (labels[0][i], labels[1][j], labels[2][k]): float(shares[i, j, k])
        for i, j, k in np.argwhere(np.abs(shares) > 1e-6)
    }


BEFORE, ATTENTION = Restored("residual_before", 1), Restored("attention", 1)
# Too little noise to turn the attention, which is sharp: only what b says is blurred, not who listens. The seed is one
# with which it pulls all prompts the same way, since else there is nothing to normalise by.
FAINT = replace(NOISE, role="b", sigma=0.3, seed=28)


@pytest.mark.parametrize("corruption", [FAINT, replace(TOKENS, role="b"), replace(TOKENS, role=None)])
def test_on_the_hand_wired_model_a_trace_shows_the_known_states_and_nothing_else(corruption: Corruption) -> None:
    """With b unreadable, its own place holds the answer before 1.0 has read it, and the end afterwards."""
    t, pairs = wrap(induction_model()), induction_with("other answer")
    wide = [Restored(state, 3) for state in ("residual_before", "residual_after", "attention")]
    found = found_cells(trace(t, pairs, corruption=corruption, restored=[BEFORE, STREAM, ATTENTION, *wide]))
    assert set(found) == {
        ("residual_before", "0", "b"),
        ("residual_before", "1", "b"),
        ("residual_after", "0", "b"),
        ("residual_after", "1", "end"),
        ("attention", "1", "end"),
        # Windows of three layers are the whole model.
        *(("residual_before, 3 layers", layer, "b") for layer in "01"),
        *(("residual_after, 3 layers", layer, place) for layer in "01" for place in ("b", "end")),
        *(("attention, 3 layers", layer, "end") for layer in "01"),
    }
    assert found == {cell: pytest.approx(1, abs=1e-9) for cell in found}


def test_on_the_hand_wired_model_severing_cuts_what_runs_through_attention() -> None:
    """What 1.0 looks for is asked at the end: with attention severed there, the stream restored before it helps no
    more. Of a, at its own place, nothing is cut: it is head 0.0 at b that reads it."""
    t, cut = wrap(induction_model()), ("attention",)
    restored = [BEFORE, STREAM, replace(BEFORE, severed=cut), replace(STREAM, severed=cut)]
    asked = induction_with("other question")
    found = found_cells(trace(t, asked, corruption=replace(TOKENS, role="end"), restored=restored))
    assert set(found) == {
        ("residual_before", "0", "end"),
        ("residual_before", "1", "end"),
        ("residual_after", "0", "end"),
        ("residual_after", "1", "end"),
        ("residual_after, attention severed", "1", "end"),
    }
    assert found == {cell: pytest.approx(1, abs=1e-9) for cell in found}
    matched = induction_with("broken match")
    found = found_cells(trace(t, matched, corruption=replace(TOKENS, role="a"), restored=restored))
    assert set(found) == {
        ("residual_before", "0", "a"),
        ("residual_before, attention severed", "0", "a"),
        ("residual_before", "1", "b"),
        ("residual_before, attention severed", "1", "b"),
        ("residual_after", "0", "b"),
        ("residual_after, attention severed", "0", "b"),
        ("residual_after", "1", "end"),
        ("residual_after, attention severed", "1", "end"),
    }
    assert found == {cell: pytest.approx(1, abs=1e-9) for cell in found}


def test_both_sublayers_severed_leave_what_the_stream_itself_carries() -> None:
    """Nothing after the restored layer changes at that place: the last position ends as the clean stream with what the
    corrupted run added to it since."""
    t, pairs = wrap(tiny("toy-no-norm")), facts(2)
    both = Restored("residual_after", 1, ("mlp", "attention"))
    cells = trace(t, pairs, restored=[both], corruption=TOKENS, places=make_places(pairs, "role", ["end"]))
    with torch.no_grad():
        for number, pair in enumerate(pairs):
            clean, corrupt = (record_run(t, t.embed(torch.tensor([tokens]))) for tokens in (pair.clean, pair.corrupt))
            for layer in range(t.n_layers):
                last = clean.after(layer) + corrupt.last - corrupt.after(layer)
                logits = t.unembed(last[0, -1])
                expected = float(logits[pair.answers[0][0]] - logits[pair.wrong[0][0]])
                assert cells.per_example[0, 0, layer, 0, number] == pytest.approx(expected, abs=1e-10)


def test_noise_depends_on_seed_and_prompt_and_not_on_batches_or_memory() -> None:
    t, pairs = wrap(tiny("gemma2")), facts(5, (5, 8))
    wide = trace(t, pairs)
    narrow = trace(t, pairs, batch_tokens=8, memory_bytes=200_000)
    assert np.abs(wide.per_example - narrow.per_example).max() < 1e-10
    assert np.abs(wide.corrupt - narrow.corrupt).max() < 1e-10
    other = trace(t, pairs, corruption=replace(NOISE, seed=6))
    assert np.abs(wide.corrupt - other.corrupt).max() > 1e-4
    with pytest.raises(OutOfMemory):
        trace(t, pairs, memory_bytes=1000)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_sigma_counts_standard_deviations_of_the_embeddings_as_they_enter_the_stream(name: str) -> None:
    """These families scale the rows of their table by the root of the width."""
    t = wrap(tiny(name))
    entering = t.embed(torch.arange(t.vocab_size)[None]).detach().sum(0)
    expected = float(entering.std(correction=0))
    assert embedding_std(t) == pytest.approx(expected, rel=1e-6)
    table = t.module.get_input_embeddings().weight.detach()  # type: ignore[operator]
    assert expected == pytest.approx(t.d_model**0.5 * float(table.std(correction=0)), rel=0.01)
    assert trace(t, facts(1)).facts["noise_standard_deviation"] == pytest.approx(3 * expected, rel=1e-6)


def test_one_corrupted_run_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is set aside for it and the clean run; a third would not fit."""
    runs: list[weakref.ref[Run]] = []
    alive = []

    def recorded(t: Transformer, inputs: Tensor) -> Run:
        alive.append(sum(run() is not None for run in runs))
        run = record_run(t, inputs)
        runs.append(weakref.ref(run))
        return run

    monkeypatch.setattr(causal, "record_run", recorded)
    trace(wrap(tiny("llama")), facts(4, (5, 6)), restored=[STREAM])
    assert alive == [0, 1, 1] * 2  # clean, two samples; of two batches


def test_windows_are_cut_off_at_the_ends_of_the_model() -> None:
    assert list(window_around(10, 10, 48)) == list(range(5, 15))
    assert list(window_around(10, 3, 48)) == [9, 10, 11]
    assert list(window_around(0, 3, 4)) == [0, 1]
    assert list(window_around(3, 1, 4)) == [3]
    with pytest.raises(TaskError, match="window of 0 layers"):
        window_around(0, 0, 4)


@pytest.mark.parametrize(
    ("one", "label"),
    [
        (Restored("mlp", 1), "mlp"),
        (Restored("mlp", 10), "mlp, 10 layers"),
        (Restored("residual_after", 1, ("mlp",)), "residual_after, mlp severed"),
        (Restored("residual_before", 2, ("mlp", "attention")), "residual_before, 2 layers, mlp and attention severed"),
    ],
)
def test_label_of_a_row_says_all_that_it_is(one: Restored, label: str) -> None:
    assert one.label == label


def test_one_state_may_be_restored_in_windows_of_several_sizes() -> None:
    cells = trace(wrap(tiny("llama")), facts(2), restored=[Restored("mlp", 1), Restored("mlp", 3)])
    assert cells.axes[1].labels == ("mlp", "mlp, 3 layers")
    assert cells.parameters["windows"] == {"mlp": 1, "mlp, 3 layers": 3}
    assert np.abs(cells.per_example[:, 0] - cells.per_example[:, 1]).max() > 1e-3


def test_all_faults_of_a_trace_are_reported_together() -> None:
    t = wrap(tiny("toy-attention-only"))
    restored = [Restored("mlp", 1), Restored("residual_after", 1, ("attention", "mlp"))]
    restored += [Restored("attention", 1, ("attention",)), Restored("soul", 1), Restored("soul", 1)]
    with pytest.raises(TaskError) as caught:
        trace(t, facts(1), restored=restored, corruption=replace(NOISE, samples=0, role="nobody"))
    assert [fault.where for fault in caught.value.faults] == [
        "mlp",
        "soul",
        "soul",
        "residual_after, attention and mlp severed",
        "attention, attention severed",
        "soul",
        "corruption",
        "nobody",
    ]
    assert "what can be severed in this model: attention, and" in caught.value.faults[3].message


def test_noise_needs_a_subject() -> None:
    with pytest.raises(TaskError, match="noise needs a subject: name a role"):
        trace(wrap(tiny("gpt2")), facts(1), corruption=replace(NOISE, role=None))
