"""Causal tracing: against hooks on the Hugging Face model, and against what must hold by definition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from hand_wired import induction_model
from hooked import exact_arithmetic, hooked, see_state
from known_induction import induction_with
from tiny_transformers import random_pairs, tiny
from torch import Tensor

from acdc.errors import OutOfMemory, TaskError
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patch_map import Cells, PatchMap
from acdc.patching.batches import make_batches
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair
from acdc.tracing.causal import ANSWER_PROBABILITY, PAPER, Corruption, Restored, embedding_std, trace_causes
from acdc.tracing.places import make_places
from acdc.tracing.windows import window_around

MEMORY = 2**30
NOISE = Corruption("subject", sigma=3.0, samples=2, seed=5)
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
        "restored": PAPER,
        "places": make_places(pairs, "role"),
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
    """One prompt and its noise [sample, pos, d]: runs of the model itself in which states are restored, by one hook for
    each layer of a window."""

    def __init__(self, t: Transformer, pair: Pair, noise: Tensor) -> None:
        self.t, self.pair, self.noise = t, pair, noise
        self.tokens = torch.tensor([pair.clean] * len(noise))
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
    def metrics(self, one: Restored | None = None, layer: int = 0, role: str = "end") -> list[float]:
        """Means over the noise samples."""
        where = torch.zeros(self.tokens.shape, dtype=torch.bool)
        where[:, slice(*self.pair.roles[role])] = True
        n, values = self.t.n_layers, {}
        if one is not None:
            values = {(one.state, i): self.clean(one.state, i) for i in window_around(layer, one.window, n)}
            if one.severed is not None:
                values |= {(one.severed, i): self.corrupted(one.severed, i) for i in range(n)}
        with ExitStack() as hooks:
            hooks.enter_context(self._noise())
            for (state, i), value in values.items():
                put = partial(torch.where, where[..., None], value)
                hooks.enter_context(hooked(self.t, (state, i, 0), put))
            logits = self.t.module(self.tokens).logits[:, -1]
        (right,), (wrong,) = self.pair.answers[0], self.pair.wrong[0]
        return [float((logits[:, right] - logits[:, wrong]).mean()), float(logits.softmax(-1)[:, right].mean())]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-neox", "gemma3", "toy-bidirectional"])
def test_every_cell_is_the_mean_of_noised_runs_with_hooks_that_restore(name: str) -> None:
    model, pairs = tiny(name), facts(2, (5, 6))
    restored = [*PAPER[1:3], Restored("mlp", 2), Restored("attention", 3), Restored("residual_before", 2)]
    with exact_arithmetic(model):
        t = wrap(model)
        cells = trace(t, pairs, restored=restored)
        for number, pair in enumerate(pairs):
            runs = Noised(t, pair, torch.cat([noise_of(t, pair, number, sample) for sample in range(2)]))
            assert np.abs(cells.corrupt[:, number] - runs.metrics()).max() < 1e-8
            for index, one in enumerate(restored):
                for layer in range(t.n_layers):
                    for place, role in enumerate(cells.axes[3].labels):
                        expected = runs.metrics(one, layer, role)
                        found = cells.per_example[:, index, layer, place, number]
                        assert np.abs(found - expected).max() < 1e-8, (one.label, layer, role)


def test_without_noise_nothing_has_an_effect() -> None:
    t, pairs = wrap(tiny("gpt2")), facts(3)
    cells = trace(t, pairs, corruption=Corruption("subject", sigma=0.0, samples=2))
    assert np.abs(PatchMap.of(cells, seed=0).effect).max() < 1e-12
    assert np.abs(cells.clean - cells.corrupt).max() < 1e-12
    assert cells.facts["noise_standard_deviation"] == 0.0


@pytest.mark.parametrize("corruption", [NOISE, Corruption("subject", sigma=None)])
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
    cells = trace(t, pairs, restored=PAPER[:1], places=make_places(pairs, "all"))
    assert np.abs(cells.per_example - cells.clean[:, None, None, None]).max() < 1e-10


def test_token_replacement_is_denoising_activation_patching() -> None:
    from acdc.tracing.activation import patch_activations

    t, pairs = wrap(tiny("llama")), facts(3)
    cells = trace(t, pairs, corruption=Corruption("subject", sigma=None), restored=PAPER[:1])
    expected = patch_activations(
        t,
        pairs,
        make_batches(t, pairs, 512, MEMORY),
        METRIC_AND_PROBABILITY,
        kind="residual_after",
        places=make_places(pairs, "role"),
        direction="denoising",
        memory_bytes=MEMORY,
        progress=Quiet(),
    )
    assert np.abs(cells.per_example[:, 0] - expected.per_example).max() < 1e-10
    assert np.abs(cells.corrupt - expected.corrupt).max() < 1e-10


def test_on_the_hand_wired_model_a_trace_shows_the_known_states_and_nothing_else() -> None:
    """With b replaced, its own place holds the answer before 1.0 has read it, and the end afterwards."""
    t, pairs = wrap(induction_model()), induction_with("other answer")
    restored = [Restored("residual_before", 1), Restored("residual_after", 1), Restored("attention", 1)]
    cells = trace(t, pairs, corruption=Corruption("b", sigma=None), restored=restored)
    effect = PatchMap.of(cells, seed=0).effect[0]
    labels = [axis.labels for axis in cells.axes[1:]]
    found = {tuple(of[i] for of, i in zip(labels, cell, strict=True)) for cell in np.argwhere(np.abs(effect) > 1e-6)}
    assert found == {
        ("residual_before", "0", "b"),
        ("residual_before", "1", "b"),
        ("residual_after", "0", "b"),
        ("residual_after", "1", "end"),
        ("attention", "1", "end"),
    }


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


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_sigma_counts_standard_deviations_of_the_embeddings_as_they_enter_the_stream(name: str) -> None:
    t = wrap(tiny(name))
    every = t.module.get_input_embeddings()(torch.arange(t.vocab_size)).detach()  # type: ignore[operator]
    assert embedding_std(t) == pytest.approx(float(every.std(correction=0)), rel=1e-9)
    assert trace(t, facts(1)).facts["noise_standard_deviation"] == pytest.approx(3 * float(every.std(correction=0)))


def test_windows_are_cut_off_at_the_ends_of_the_model() -> None:
    assert list(window_around(10, 10, 48)) == list(range(5, 15))
    assert list(window_around(10, 3, 48)) == [9, 10, 11]
    assert list(window_around(0, 3, 4)) == [0, 1]
    assert list(window_around(3, 1, 4)) == [3]
    with pytest.raises(TaskError, match="window of 0 layers"):
        window_around(0, 0, 4)


def test_all_faults_of_a_trace_are_reported_together() -> None:
    t = wrap(tiny("toy-attention-only"))
    restored = [Restored("mlp", 1), Restored("attention", 1, "mlp"), Restored("soul", 1), Restored("soul", 1)]
    with pytest.raises(TaskError) as caught:
        trace(t, facts(1), restored=restored, corruption=Corruption("subject", samples=0))
    wheres = [fault.where for fault in caught.value.faults]
    assert wheres == ["mlp", "soul", "soul", "attention, mlp severed", "soul", "corruption"]
    with pytest.raises(TaskError, match="nobody: 1 prompts have no such role"):
        trace(t, facts(1), restored=PAPER[:1], corruption=Corruption("nobody"))
