"""GGUF, `.bin` and directories become one model on disk, whole or not at all."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from safetensors.torch import save_file
from tiny_files import Recorder, reference, write_tiny_gguf, write_tiny_llama
from transformers import AutoModelForCausalLM

from acdc.errors import BadWeights, Cancelled, StorageError, UnknownModel
from acdc.models.cache import ModelCache
from acdc.models.inventory import full_disk_named, list_local

HERE = Path(__file__).parent


def start_loading(cache: Path, gguf: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "loads_a_model.py"), str(cache), str(gguf)]
    path = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_gguf_weights_arrive_unchanged(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    loaded = ModelCache(tmp_path / "cache").load(reference("gguf", tmp_path / "tiny.gguf"))
    from gguf import GGUFReader

    expected = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    up = loaded.model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(up, torch.tensor(expected["blk.1.ffn_up.weight"]))
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("some text")) == "some text"
    assert not loaded.model.training
    assert loaded.card.parity is None


def test_killed_conversion_leaves_nothing_half_done_and_the_next_one_succeeds(tmp_path: Path) -> None:
    gguf, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_tiny_gguf(gguf)
    process = start_loading(cache, gguf)
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("converting"):
        assert line, "the process ended before it converted anything"
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "an orphan goes on converting"
    assert list_local(cache) == []
    loaded = ModelCache(cache).load(reference("gguf", gguf))
    assert list_local(cache)[0].model.fingerprint == loaded.card.fingerprint
    assert list((cache / "partial").iterdir()) == []


def test_of_two_processes_at_once_one_converts_and_both_get_the_model(tmp_path: Path) -> None:
    gguf, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_tiny_gguf(gguf)
    processes = [start_loading(cache, gguf), start_loading(cache, gguf)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("converting" in output for output in outputs) == 1
    last = {output.splitlines()[-1] for output in outputs}
    assert len(last) == 1
    assert last.pop().startswith("fingerprint")


def test_cancelling_a_conversion_ends_it(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    before = psutil.Process().children()  # other rooms' servers

    class Impatient(Recorder):
        def step(self, done: int, note: str = "") -> None:
            if self.phases[-1].startswith("converting"):
                raise Cancelled("stop")

    with pytest.raises(Cancelled):
        ModelCache(tmp_path / "cache").load(reference("gguf", tmp_path / "tiny.gguf"), progress=Impatient())
    assert list_local(tmp_path / "cache") == []
    assert list((tmp_path / "cache" / "partial").iterdir()) == []
    assert psutil.Process().children() == before


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_gguf_is_named(tmp_path: Path, share: float) -> None:
    whole, cut = tmp_path / "whole.gguf", tmp_path / "cut.gguf"
    write_tiny_gguf(whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadWeights, match=r"cut\.gguf"):
        ModelCache(tmp_path / "cache").load(reference("gguf", cut))


def test_garbage_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 20)
    with pytest.raises(BadWeights, match=r"noise\.gguf"):
        ModelCache(tmp_path / "cache").load(reference("gguf", tmp_path / "noise.gguf"))


def test_not_a_number_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "nan.gguf", spoil="blk.1.ffn_up.weight")
    with pytest.raises(BadWeights, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        ModelCache(tmp_path / "cache").load(reference("gguf", tmp_path / "nan.gguf"))
    assert list_local(tmp_path / "cache") == []


def test_missing_tensor_is_refused_and_not_made_up(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "part.gguf", without="blk.0.ffn_up.weight")
    with pytest.raises(BadWeights, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        ModelCache(tmp_path / "cache").load(reference("gguf", tmp_path / "part.gguf"))


def test_directory_is_used_where_it_lies(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny")
    loaded = ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "tiny"))
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits.detach())
    assert list_local(tmp_path / "cache")[0].model.directory == str(tmp_path / "tiny")


def test_changed_directory_is_another_model(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "cache")
    write_tiny_llama(tmp_path / "tiny", seed=0)
    first = cache.load(reference("path", tmp_path / "tiny")).card.fingerprint
    write_tiny_llama(tmp_path / "tiny", seed=1)
    assert cache.load(reference("path", tmp_path / "tiny")).card.fingerprint != first


def test_bin_weights_equal_safetensors(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny", as_bin=True)
    loaded = ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "tiny"))
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits.detach())


class Trap(NamedTuple):
    target: str

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (self.target,))


def test_code_in_bin_weights_does_not_run(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny", as_bin=True)
    with (tmp_path / "tiny" / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Trap(str(tmp_path / "sprung")), file)
    with pytest.raises(BadWeights, match=r"pytorch_model\.bin"):
        ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "tiny"))
    assert not (tmp_path / "sprung").exists()


def test_truncated_safetensors_is_named(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadWeights, match=r"model\.safetensors"):
        ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "tiny"))


@pytest.fixture
def builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_args, **_options: pytest.fail("was built"))


@pytest.mark.usefixtures("builds_nothing")
@pytest.mark.parametrize("tensors", [{}, {"model.norm.weight": torch.ones(16)}])
def test_files_that_hold_next_to_nothing_are_refused_before_the_model_is_built(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    """What the files lack is built at the size that config.json asks for, and by default that is billions."""
    write_tiny_llama(tmp_path / "hollow")
    save_file(tensors, tmp_path / "hollow" / "model.safetensors")
    with pytest.raises(BadWeights, match=r"no tensors|16 of the [\d,]+ numbers"):
        ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "hollow"))


@pytest.mark.usefixtures("builds_nothing")
def test_what_config_json_does_not_say_is_not_made_up(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "hollow")
    (tmp_path / "hollow" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadWeights, match=r"of the 6,\d{3},\d{3},\d{3} numbers"):
        ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "hollow"))


@pytest.mark.parametrize("kind", ["path", "gguf"])
def test_what_is_not_there_is_unknown(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnknownModel, match="nowhere"):
        ModelCache(tmp_path / "cache").load(reference(kind, tmp_path / "nowhere"))


class Usage(NamedTuple):
    free: int


def test_too_little_disk_space_is_said_before_converting(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    cache = ModelCache(tmp_path / "cache", disk_usage=lambda path: Usage(12_345))
    progress = Recorder()
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes in .*cache.* 12,345 are free"):
        cache.load(reference("gguf", tmp_path / "tiny.gguf"), progress=progress)
    assert not any("converting" in phase for phase in progress.phases)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_disk_that_fills_up_meanwhile_is_a_storage_error(tmp_path: Path) -> None:
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with full, pytest.raises(StorageError, match="4,096 bytes are needed"), full_disk_named(tmp_path, 4096):
        full.write(b"x")


def test_other_errors_pass_the_disk_check_unchanged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other"), full_disk_named(tmp_path, 1):
        raise ValueError("other")
