"""A challenged circuit of a built-in task: every setting and every control measures what its name says, found here by
another way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from task_words import words_only
from test_challenge import SMALL, by_name, challenged, on
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.challenge import Challenge, Control
from acdc.challenging import answers_shuffled, with_random_weights
from acdc.circuit import Circuit
from acdc.evaluation.split_half import overlap
from acdc.from_spec import job_of, search_of, setting_of
from acdc.graph import BoolMatrix
from acdc.models.loading import Loaded, describe_loaded
from acdc.progress import Quiet
from acdc.selection import rank
from acdc.setting import Setting
from acdc.spec import DiscoverSpec, parse_job
from acdc.tasks.prompts import PromptSet

Change = Callable[[PromptSet], PromptSet]
JOB = {
    "task": {"name": "ioi", "prompts": 12, "held_out": 8},
    "method": {"name": "eap", "objective": "logit_diff"},
    "metric": "kl_divergence",  # in which no circuit is as good as the model, so f can be told
    "selection": {"size": 0.2, "rule": "absolute"},
    "evaluation": SMALL,
}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """Weights so large that answers depend on the prompt."""
    tokenizer = words_only()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 10
    return describe_loaded(model, tokenizer)


@pytest.fixture(scope="module")
def source(loaded: Loaded) -> Circuit:
    circuit = on(loaded, JOB)[0].circuit
    assert circuit is not None
    return circuit


def changed(source: Circuit, **changes: Any) -> DiscoverSpec:
    """The job behind it, some of its task's fields or its method's changed."""
    data = job_of(source).model_dump(mode="json")
    for name, part in changes.items():
        data[name] = {**data[name], **part}
    spec = parse_job(data)
    assert isinstance(spec, DiscoverSpec)
    return spec


def searched(loaded: Loaded, source: Circuit, spec: DiscoverSpec, change: Change | None = None) -> BoolMatrix:
    """What the search finds there, as many edges as the source was cut to."""
    setting = setting_of(loaded, spec, Quiet(), change=change)
    (found,) = search_of(setting, spec, Quiet())
    return rank(setting.t.graph, found.scores, found.tested, "absolute").select(source.selected.asked_for).mask


def f_in(setting: Setting, mask: BoolMatrix) -> float:
    """On the held-out prompts. KL's f is also one without the share of KL that is left."""
    legal = setting.t.graph.legal
    values = setting.held_out.split(setting.t, "kl_divergence").measure([legal, np.zeros_like(legal), mask])
    full, empty, circuit = values.metric.mean(1, dtype=np.float64)
    return float((circuit - empty) / (full - empty))


def test_other_prompts_and_corruptions_are_those_of_the_seed_and_the_name(loaded: Loaded, source: Circuit) -> None:
    wanted = {"vary": ["prompts", "corruption"], "seeds": 2, "factorial": False, "controls": False}
    tried = by_name(challenged(loaded, source, **wanted)[0])
    held_out = source.provenance.task.groups_held_out
    groups_by_seed = []

    def as_first(prompts: PromptSet) -> PromptSet:
        """What was held out stays held out, template by template."""
        groups_by_seed.append({pair.group for pair in prompts.held_out})
        pairs = (*prompts.search, *prompts.held_out)
        sides = [tuple(pair for pair in pairs if (pair.group in held_out) == is_out) for is_out in (False, True)]
        return replace(prompts, search=sides[0], held_out=sides[1])

    cases: dict[str, tuple[DiscoverSpec, Change | None]] = {
        "as it was found": (changed(source), None),
        "corruption s2_io_flip": (changed(source, task={"corruption": "s2_io_flip"}), None),
        "other prompts, seed 1": (changed(source, task={"seed": 1}), as_first),
        "other prompts, seed 2": (changed(source, task={"seed": 2}), as_first),
    }
    assert set(tried) == set(cases)
    for name, (spec, change) in cases.items():
        setting = setting_of(loaded, spec, Quiet(), change=change)
        assert tried[name].f == pytest.approx(f_in(setting, source.kept), abs=1e-5), name
        assert tried[name].n_examples == len(setting.held_out.pairs)
        found = searched(loaded, source, spec, change)
        assert tried[name].jaccard == pytest.approx(overlap(found, source.kept)[0]), name
    assert len({round(one.f, 4) for one in tried.values()}) == len(cases), "none is another one's twin"
    assert set(held_out) not in groups_by_seed, "by itself each seed would hold out templates that were searched"


def test_other_seeds_are_those_of_the_search(loaded: Loaded) -> None:
    method = {"name": "edge-pruning", "steps": 20, "edges": 0.3}
    source = on(loaded, {**JOB, "method": method})[0].circuit
    found, _ = challenged(loaded, source, vary=["seed"], seeds=2, factorial=False, controls=False)
    assert list(by_name(found)) == ["as it was found", "mask_seed 1", "mask_seed 2"]
    assert found.n_searches == 2
    for seed, one in enumerate(found.tried):
        again = searched(loaded, source, changed(source, method={"mask_seed": seed}))
        assert one.jaccard == pytest.approx(overlap(again, source.kept)[0])
        assert one.f == pytest.approx(found.tried[0].f, abs=1e-6), "the circuit and its prompts are the same"
    assert len({one.jaccard for one in found.tried}) == 3


# -- controls ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_controls(loaded: Loaded, source: Circuit) -> Challenge:
    return challenged(loaded, source, vary=["rule"], factorial=False)[0]


@pytest.fixture(scope="module")
def controls(with_controls: Challenge) -> Mapping[str, Control]:
    return {one.name: one for one in with_controls.controls}


def cases(loaded: Loaded, source: Circuit) -> dict[str, tuple[Loaded, DiscoverSpec, Change | None]]:
    """Where the circuit of each control is searched."""
    random = replace(loaded, model=with_random_weights(loaded.model, 0))
    other = {"name": "country_capital", "corruption": None}
    return {
        "answers shuffled between prompts": (loaded, changed(source), answers_shuffled),
        "model with random weights": (random, changed(source), None),
        "circuit of another task, country_capital": (loaded, changed(source, task=other), None),
    }


def test_controls_are_found_where_there_is_nothing_to_find(
    loaded: Loaded, source: Circuit, controls: Mapping[str, Control]
) -> None:
    places = cases(loaded, source)
    assert set(controls) == {*places, "matched random circuits"}
    for name, (model, spec, change) in places.items():
        found = searched(model, source, spec, change)
        assert controls[name].jaccard == pytest.approx(overlap(found, source.kept)[0]) != 1, name
    assert len({controls[name].jaccard for name in places}) == len(places)


def test_controls_are_measured_in_the_setting_of_the_circuit(
    loaded: Loaded, source: Circuit, controls: Mapping[str, Control]
) -> None:
    own = setting_of(loaded, changed(source), Quiet())
    for name, (model, spec, change) in cases(loaded, source).items():
        found = searched(model, source, spec, change)
        assert controls[name].f == (pytest.approx(f_in(own, found), abs=1e-5),), name
        if change is None:  # KL asks no answers
            elsewhere = f_in(setting_of(model, spec, Quiet()), found)
            assert controls[name].f != (pytest.approx(elsewhere, abs=1e-2),), "it could be told from its own"
