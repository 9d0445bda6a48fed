"""What docs/concepts/jobs.md says of checkpoints is what the methods and the evaluation do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_transformers import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from acdc.models.loading import describe_loaded
from acdc.pipeline import run_on
from acdc.progress import Checkpoint, Quiet
from acdc.spec import METHOD_SPECS, parse_job

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "jobs.md"
WORDS = ("<unk>", "a", "b", "c", "d", "e", "f")


class Recorder(Quiet):
    """The phases, in order, and for each whether a checkpoint was saved in it."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.saved_in: set[str] = set()

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)

    def save(self, checkpoint: Checkpoint) -> None:
        self.saved_in.add(self.phases[-1])


def words_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def documented() -> set[str]:
    """The methods that the page says save checkpoints."""
    found = re.search(r"\*\*Checkpoints\.\*\* The searches (.*?) hand over their latest state", PAGE.read_text(), re.S)
    assert found is not None
    return set(re.findall(r"`([a-z-]+)`", found[1]))


@pytest.mark.parametrize("method", METHOD_SPECS)
def test_methods_save_checkpoints_as_documented_and_every_evaluation_does(method: str) -> None:
    pairs = [{"clean": f"{w} b c", "corrupt": f"{w} c b", "answers": " d", "wrong": " e", "group": w} for w in "abcdef"]
    spec = parse_job(
        {
            "task": {"name": "custom", "pairs": pairs, "prompts": 4, "held_out": 2},
            "method": method,
            "evaluation": {"grid": [0.5], "random_circuits": 1, "band_circuits": 0},
        }
    )
    recorder = Recorder()
    run_on(describe_loaded(tiny("toy", torch.float32), words_tokenizer()), spec, recorder)
    evaluation = recorder.phases[recorder.phases.index("model and empty circuit") :]
    assert "kept circuit" in evaluation
    assert recorder.saved_in - set(evaluation) == ({method} if method in documented() else set())
    assert "curve" in recorder.saved_in or "kept circuit" in recorder.saved_in
