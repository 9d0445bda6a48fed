"""An evaluation that was stopped goes on with what it has measured, after whatever search, to the same report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_challenge import random_rows, words_tokenizer
from tiny_transformers import VOCAB, tiny

from acdc.circuit import Circuit
from acdc.errors import Cancelled
from acdc.models.loading import Loaded, describe_loaded
from acdc.pipeline import run_on
from acdc.progress import Checkpoint, Quiet
from acdc.setting import _Measured
from acdc.spec import parse_job


class Stopping(Quiet):
    """Stops at the first step of a phase after some more steps; keeps the newest checkpoint."""

    def __init__(self, checkpoint: Checkpoint | None = None, stop_in: str = "", after: int = 0) -> None:
        self.checkpoint, self.stop_in, self.left = checkpoint, stop_in, after
        self.phases: list[str] = []

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)

    def step(self, done: int, note: str = "") -> None:
        if self.stop_in and self.phases[-1].startswith(self.stop_in):
            if self.left == 0:
                raise Cancelled("stopped")
            self.left -= 1

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def resume(self) -> Checkpoint | None:
        return self.checkpoint


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Circuits in every measurement."""
    calls: list[int] = []
    measure = _Measured.__call__

    def counting(self: _Measured, masks: Any) -> Any:
        calls.append(len(masks))
        return measure(self, masks)

    monkeypatch.setattr(_Measured, "__call__", counting)
    return calls


def spec_of(method: Any) -> Any:
    task = {"name": "custom", "pairs": random_rows(), "prompts": 16, "held_out": 8}
    evaluation = {
        "grid": [0.1, 0.3, 1.0],
        "random_circuits": 4,
        "band_circuits": 1,
        "knock_outs": 3,
        "minimality": 20,
        "tests": 30,
    }
    return parse_job({"task": task, "method": method, "evaluation": evaluation, "selection": {"size": 0.6}})


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    torch.manual_seed(0)
    return describe_loaded(tiny("toy", torch.float32), words_tokenizer(VOCAB))


ACDC = {"name": "acdc", "thresholds": [0.01, 0.001]}


@pytest.mark.parametrize("method", ["eap", "exact", ACDC], ids=["eap", "exact", "acdc"])
@pytest.mark.parametrize("stop_in", ["kept circuit", "minimality", "hypothesis tests", "the same circuit under mean"])
def test_a_stopped_evaluation_measures_nothing_twice_and_ends_the_same(
    loaded: Loaded, method: Any, stop_in: str, counted: list[int]
) -> None:
    spec = spec_of(method)
    undisturbed = [result.circuit for result in run_on(loaded, spec, Quiet())]
    whole = sum(counted)
    counted.clear()
    first = Stopping(stop_in=stop_in, after=1)
    with pytest.raises(Cancelled):
        run_on(loaded, spec, first)
    before = sum(counted)
    assert 0 < before < whole
    counted.clear()
    second = Stopping(first.checkpoint)
    again = [result.circuit for result in run_on(loaded, spec, second)]
    assert sum(counted) == whole - before
    for a, b in zip(undisturbed, again, strict=True):
        assert_same(a, b)


def assert_same(a: Circuit | None, b: Circuit | None) -> None:
    assert a is not None
    assert b is not None
    assert a.n_edges > 0
    assert (a.kept == b.kept).all()
    assert np.abs(a.scores - b.scores).max() <= 1e-5 * np.abs(a.scores).max()
    assert a.report == b.report
    assert replace(a.provenance, run=b.provenance.run) == b.provenance


def test_a_search_goes_on_from_its_own_last_state_beside_what_was_measured(loaded: Loaded) -> None:
    spec = spec_of(ACDC)
    first = Stopping(stop_in="minimality", after=1)
    with pytest.raises(Cancelled):
        run_on(loaded, spec, first)
    assert first.checkpoint is not None
    assert {name.partition("/")[0] for name in first.checkpoint.arrays} == {"search", "measured"}
    second = Stopping(first.checkpoint, stop_in="acdc")
    run_on(loaded, spec, second)  # were the search made again, it would step there, and be stopped
