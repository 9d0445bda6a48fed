"""Scores of every example apart, against running that example alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_transformers import MAKERS, random_pairs, tiny

from acdc.discovery.eap import score_eap, score_eap_ig_activations, score_eap_ig_inputs
from acdc.discovery.eap_ig_qk import score_eap_ig_qk
from acdc.discovery.exact import score_exact
from acdc.discovery.gim import score_gim
from acdc.discovery.mask_ig import score_mask_ig
from acdc.discovery.problem import Found, Problem, add_scores
from acdc.discovery.relp import score_relp
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patching.ablation import Ablation, Resample, Zero, mean_over
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.progress import Quiet
from acdc.spec import PER_EXAMPLE
from acdc.tasks.prompts import Pair

MEMORY = 2**28
METHODS: dict[str, Callable[[Problem], list[Found]]] = {
    "eap": lambda problem: score_eap(problem, Quiet()),
    "eap-ig-inputs": lambda problem: score_eap_ig_inputs(problem, Quiet(), steps=2),
    "mask-ig": lambda problem: score_mask_ig(problem, Quiet(), steps=2),
    "eap-ig-qk": lambda problem: score_eap_ig_qk(problem, Quiet(), steps=2),
    "relp": lambda problem: score_relp(problem, Quiet(), attention="gradient"),
    "gim": lambda problem: score_gim(problem, Quiet(), temperature=2.0),
    "eap-ig-activations": lambda problem: score_eap_ig_activations(problem, Quiet(), steps=2),
}


def mixed_pairs(n: int = 4) -> list[Pair]:
    """Three lengths; every second example has answers of several tokens, hence several rows, not always as many."""
    pairs = []
    for i, pair in enumerate(random_pairs(n, lengths=(4, 6))):
        longer = pair if i % 2 else replace(pair, answers=((3, 4), (7,)), wrong=((5, 6, 9), (8,))[: 1 + i % 4 // 2])
        pairs.append(longer)
    return pairs


def problem_of(t: Transformer, pairs: Sequence[Pair], values: Ablation, metric: str = "logit_diff") -> Problem:
    prompts = prepare(t, make_batches(t, pairs, 60, MEMORY), values)
    return Problem(t, prompts, METRICS[metric], MEMORY, keep_examples=True)


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-5) -> bool:
    return bool(np.abs(a - b).max() <= tolerance * np.abs(b).max())


CASES = [
    *((name, "resample") for name in ("gemma2", "toy-attention-only")),
    *(("llama", ablation) for ablation in ("resample", "zero", "mean")),
]


def test_specs_know_which_methods_give_scores_per_example() -> None:
    assert set(PER_EXAMPLE) == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(("name", "ablation"), CASES)
def test_scores_of_an_example_are_those_of_running_it_alone(name: str, method: str, ablation: str) -> None:
    t, pairs = wrap(tiny(name)), mixed_pairs()
    values: Ablation = {"resample": Resample(), "zero": Zero()}.get(ablation) or mean_over(
        t, make_batches(t, pairs, 60, MEMORY), per_role=False
    )
    (found,) = METHODS[method](problem_of(t, pairs, values))
    assert found.per_example is not None
    assert found.per_example.shape == (len(pairs), t.graph.n_edges)
    assert close(t.graph.matrix_of(found.per_example.mean(0)), found.scores)
    for own, pair in zip(found.per_example, pairs, strict=True):
        (alone,) = METHODS[method](problem_of(t, [pair], values))
        assert close(own, t.graph.in_order(alone.scores))


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_mean_over_examples_is_the_scores_without_them(name: str) -> None:
    t, pairs = wrap(tiny(name, torch.float32)), random_pairs(5, lengths=(5, 8))
    problem = problem_of(t, pairs, Resample())
    (found,) = score_eap(problem, Quiet())
    (without,) = score_eap(replace(problem, keep_examples=False), Quiet())
    assert found.per_example is not None
    assert found.per_example.dtype == np.float32
    assert without.per_example is None
    assert close(t.graph.matrix_of(found.per_example.mean(0)), without.scores)
    assert close(found.scores, without.scores)


@pytest.mark.parametrize("tile", [1, 9, 23])
def test_examples_longer_than_a_tile_of_tokens_are_summed_over_its_pieces(tile: int, monkeypatch) -> None:
    t, pairs = wrap(tiny("gemma3")), mixed_pairs()
    problem = problem_of(t, pairs, Resample())
    (whole,) = score_eap(problem, Quiet())
    monkeypatch.setattr("acdc.patching.gradients.TILE", tile)
    (cut,) = score_eap(problem, Quiet())
    assert whole.per_example is not None
    assert cut.per_example is not None
    assert close(cut.per_example, whole.per_example)
    assert close(cut.scores, whole.scores)


def test_examples_of_several_objectives_are_added_with_the_shares_of_their_scores() -> None:
    t, pairs = wrap(tiny("llama")), mixed_pairs()
    parts = [METHODS["eap-ig-inputs"](problem_of(t, pairs, Resample(), m))[0] for m in ("logit_diff", "kl_divergence")]
    total = add_scores(parts)
    assert total.per_example is not None
    assert close(t.graph.matrix_of(total.per_example.mean(0)), total.scores)
    sizes = [np.abs(part.scores).sum() for part in parts]
    assert close(total.per_example[2], sum(part.per_example[2] / s for part, s in zip(parts, sizes, strict=True)))
    assert add_scores([parts[0], replace(parts[1], per_example=None)]).per_example is None


def test_without_the_memory_examples_are_not_kept_and_it_is_said_why() -> None:
    t, pairs = wrap(tiny("toy")), random_pairs(4)
    problem = problem_of(t, pairs, Resample())
    needed = 4 * t.graph.n_edges * 4
    (fits,) = score_eap(replace(problem, memory_bytes=4 * needed), Quiet())
    (found,) = score_eap(replace(problem, memory_bytes=4 * needed - 1), Quiet())
    assert fits.per_example is not None
    assert found.per_example is None
    assert f"take {needed:,} bytes" in found.why_no_examples
    assert f"raise it to {4 * needed:,}" in found.why_no_examples
    assert close(found.scores, fits.scores)


def test_a_method_without_scores_per_example_says_so() -> None:
    (found,) = score_exact(problem_of(wrap(tiny("toy")), random_pairs(1), Resample()), Quiet())
    assert (found.per_example, found.why_no_examples) == (None, "the method gives no per-example scores")
