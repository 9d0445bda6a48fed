"""Asks auto-circuit, in its own environment and process, to run its ACDC on our weights, prompts and order."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from acdc.graph import BoolMatrix
from acdc.models.transformer import Transformer
from acdc.tasks.prompts import Pair

THEIR_HOME = Path("build/peers/auto_circuit")
SCRIPT = Path(__file__).parent / "peers" / "auto_circuit_acdc.py"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ask:
    """One run: the edges (sender, receiver) to test in their order; cut: those cut when it begins, none by default."""

    tau: float
    order: Sequence[tuple[int, int]]
    cut: BoolMatrix | None = None


@dataclass(frozen=True)
class Answer:
    """seconds: of their whole call, by the clock and of all cores [2]. kept: per edge asked. gaps: from one tested edge
    to the next [n - 1, 2]."""

    seconds: Floats
    tested: int
    kept: npt.NDArray[np.bool_]
    gaps: Floats


@dataclass(frozen=True)
class Answers:
    parity: float
    answers: list[Answer]


def ask_auto_circuit(t: Transformer, pairs: Sequence[Pair], objective: str, asks: Sequence[Ask]) -> Answers:
    """Raises CalledProcessError where theirs fails, so also where the two sides' logits differ."""
    with tempfile.TemporaryDirectory(dir="build") as place:
        directory = Path(place)
        t.module.save_pretrained(directory / "model")  # type: ignore[operator]
        job = {
            "objective": objective,
            "senders": [sender.name for sender in t.graph.senders],
            "receivers": [receiver.name for receiver in t.graph.receivers],
            "taus": [ask.tau for ask in asks],
        }
        (directory / "job.json").write_text(json.dumps(job))
        np.savez(directory / "arrays.npz", **_arrays(t, pairs, asks))
        # Their sets are of string hashes: one seed, so that whatever still hangs on their order can be repeated.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        command = [str(part) for part in (THEIR_HOME / "bin" / "python", SCRIPT, directory, torch.get_num_threads())]
        subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
        return _answers(directory, len(asks))


def _arrays(t: Transformer, pairs: Sequence[Pair], asks: Sequence[Ask]) -> dict[str, Any]:
    prompts = [[list(pair.clean) for pair in pairs], [list(pair.corrupt) for pair in pairs]]
    with torch.no_grad():
        logits = torch.stack([t.module(torch.tensor(tokens)).logits[:, -1] for tokens in prompts])
    arrays: dict[str, Any] = {
        "clean": np.array(prompts[0]),
        "corrupt": np.array(prompts[1]),
        "right": np.array([pair.answers[0][0] for pair in pairs]),
        "wrong": np.array([pair.wrong[0][0] for pair in pairs]),
        "logits": logits.numpy(),
    }
    for number, ask in enumerate(asks):
        arrays[f"order.{number}"] = np.array(ask.order)
        arrays[f"cut.{number}"] = np.zeros_like(t.graph.legal) if ask.cut is None else ask.cut
    return arrays


def _answers(directory: Path, n: int) -> Answers:
    done = json.loads((directory / "done.json").read_text())
    with np.load(directory / "done.npz") as arrays:
        answers = [
            Answer(np.array(run["seconds"]), run["tested"], arrays[f"kept.{i}"], arrays[f"seconds.{i}"])
            for i, run in zip(range(n), done["runs"], strict=True)
        ]
    return Answers(done["parity"], answers)
