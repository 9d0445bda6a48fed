"""The cache on disk and in memory: quota, leases, allow-list, pinning, twins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_files import Recorder, reference, write_tiny_gguf, write_tiny_llama

from acdc.errors import Forbidden, ServiceError, StorageError, UnknownModel
from acdc.models.allowed import AllowList
from acdc.models.cache import ModelCache
from acdc.models.catalogue import CATALOGUE, WheelMember, entry_for
from acdc.models.fingerprint import fingerprint
from acdc.models.gguf_to_safetensors import read_gguf_facts
from acdc.models.hub import HuggingFaceHub, Snapshot, choose_files
from acdc.models.inventory import Inventory, LocalModel, list_local
from acdc.models.loading import describe_loaded
from acdc.models.reference import Reference
from acdc.progress import Progress, Quiet

SIZE = 10_000  # much more than the description beside it


def put(inventory: Inventory, key: str, n_bytes: int = SIZE) -> None:
    """A finished entry of a given size."""
    with inventory.locked(key, Quiet()):
        partial = inventory.fresh_partial(key)
        (partial / "weights").write_bytes(b"x" * n_bytes)
        model = LocalModel(key, f"path:{key}", key, str(partial), key, "llama", 1, key, key, None, None, n_bytes)
        inventory.install(partial, model)


def keys(inventory: Inventory) -> set[str]:
    return {line.model.key for line in inventory.list()}


@pytest.fixture
def three(tmp_path: Path) -> Inventory:
    """Entries a, b, c, used in this order, in a cache with room for about three."""
    inventory = Inventory(tmp_path, quota_bytes=35 * SIZE // 10)
    for age, key in enumerate("abc"):
        put(inventory, key)
        used = 1_000_000 + age
        os.utime(tmp_path / "models" / key / "acdc-model.json", (used, used))
    return inventory


def test_least_recently_used_model_goes_first(three: Inventory) -> None:
    three.make_room(SIZE, Quiet())
    assert keys(three) == {"b", "c"}


def test_use_protects_from_eviction_order(three: Inventory) -> None:
    three.touch("a")
    three.make_room(SIZE, Quiet())
    assert keys(three) == {"a", "c"}


def test_leased_model_is_never_evicted(three: Inventory) -> None:
    lease = three.lease("a")
    three.make_room(SIZE, Quiet())
    assert keys(three) == {"a", "c"}
    lease.release()
    three.make_room(3 * SIZE, Quiet())
    assert "a" not in keys(three)


def test_lease_of_a_dead_process_holds_nothing(three: Inventory, tmp_path: Path) -> None:
    code = "import sys, os; from pathlib import Path; from acdc.models.inventory import Inventory; "
    code += "lease = Inventory(Path(sys.argv[1])).lease('a'); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    repository = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert {line.model.key: line.is_in_use for line in three.list()}["a"]
        process.kill()
    three.make_room(SIZE, Quiet())
    assert keys(three) == {"b", "c"}


def test_model_larger_than_the_quota_is_refused_with_the_figures(three: Inventory) -> None:
    with pytest.raises(StorageError, match=r"needs 90,000 bytes .* quota is 35,000"):
        three.make_room(9 * SIZE, Quiet())


def test_leftovers_of_interrupted_work_go_before_models_do(three: Inventory) -> None:
    (three.fresh_partial("dead") / "weights").write_bytes(b"x" * SIZE)
    three.make_room(SIZE // 10, Quiet())
    assert keys(three) == {"a", "b", "c"}
    assert not (three.directory / "partial" / "dead").exists()


def test_work_in_progress_is_not_taken_for_leftovers(three: Inventory) -> None:
    with three.locked("busy", Quiet()):
        (three.fresh_partial("busy") / "weights").write_bytes(b"x" * SIZE)
        three.make_room(SIZE, Quiet())
        assert (three.directory / "partial" / "busy" / "weights").exists()


def test_damaged_description_hides_a_model(three: Inventory) -> None:
    (three.directory / "models" / "a" / "acdc-model.json").write_text("{")
    assert keys(three) == {"b", "c"}


def test_listing_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, acdc.models.inventory, acdc.models.allowed, acdc.models.catalogue, acdc.models.reference; "
    code += "sys.exit(bool({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# -- in memory ---------------------------------------------------------------------------------------------------------


def test_loaded_model_is_kept_and_the_oldest_leaves(tmp_path: Path) -> None:
    for name in "ab":
        write_tiny_llama(tmp_path / name, seed=ord(name))
    cache = ModelCache(tmp_path / "cache")
    a, b = reference("path", tmp_path / "a"), reference("path", tmp_path / "b")
    first = cache.load(a)
    assert cache.load(a) is first
    assert [line.is_in_use for line in list_local(tmp_path / "cache")] == [True]
    cache.load(b)
    in_use = {line.model.title: line.is_in_use for line in list_local(tmp_path / "cache")}
    assert in_use == {"a": False, "b": True}
    assert cache.load(a) is not first
    cache.close()
    assert not any(line.is_in_use for line in list_local(tmp_path / "cache"))


def test_two_models_are_kept_when_asked(tmp_path: Path) -> None:
    for name in "ab":
        write_tiny_llama(tmp_path / name, seed=ord(name))
    cache = ModelCache(tmp_path / "cache", keep=2)
    first = cache.load(reference("path", tmp_path / "a"))
    cache.load(reference("path", tmp_path / "b"))
    assert cache.load(reference("path", tmp_path / "a")) is first


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_dtype_is_as_asked(tmp_path: Path, dtype: str) -> None:
    write_tiny_llama(tmp_path / "tiny")
    loaded = ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "tiny"), dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_model_in_memory_is_described_without_files(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "tiny")
    loaded = ModelCache(tmp_path / "cache").load(reference("path", tmp_path / "tiny"))
    described = describe_loaded(loaded.model, loaded.tokenizer, "mine").card
    assert described.n_parameters == loaded.card.n_parameters
    assert described.reference == "loaded:mine"
    first = described.fingerprint
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] += 1
    assert describe_loaded(loaded.model, loaded.tokenizer, "mine").card.fingerprint != first


def test_one_changed_weight_changes_the_fingerprint() -> None:
    tensors = [("w", torch.zeros(4)), ("x", torch.zeros(2, 2))]
    before = fingerprint({"a": 1}, tensors)
    assert fingerprint({"a": 1, "transformers_version": "9"}, tensors) == before
    assert fingerprint({"a": 2}, tensors) != before
    tensors[0][1][2] = 1e-30
    assert fingerprint({"a": 1}, tensors) != before


def test_twins_are_told(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    cache, progress = ModelCache(tmp_path / "cache"), Recorder()
    cache.load(reference("path", tmp_path / "one"))
    cache.load(reference("path", tmp_path / "two"), progress=progress)
    assert len(progress.logs) == 1
    assert str(tmp_path / "one") in progress.logs[0]


# -- allow-list --------------------------------------------------------------------------------------------------------


def test_reference_outside_the_patterns_is_forbidden() -> None:
    allowed = AllowList(patterns=["hub:good/*", "gemma3-270m-q4"])
    allowed.check(Reference("hub:good/model@main", "hub", "good/model", "main"))
    allowed.check(Reference("gemma3-270m-q4", "catalogue", "gemma3-270m-q4"))
    with pytest.raises(Forbidden, match=r"hub:bad/model.*hub:good/\*"):
        allowed.check(Reference("hub:bad/model", "hub", "bad/model"))


def test_file_references_are_forbidden_where_only_patterns_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(Forbidden):
        AllowList(patterns=["*"]).check(reference("path", tmp_path))


def test_neither_dots_nor_links_lead_out_of_an_allowed_directory(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    allowed = AllowList(directories=[inside])
    allowed.check(reference("path", inside / "model"))
    for path in (outside, inside / ".." / "out", inside / "link", tmp_path / "inside"):
        with pytest.raises(Forbidden):
            allowed.check(reference("gguf", path))


def test_cache_asks_the_allow_list_first(tmp_path: Path) -> None:
    cache = ModelCache(tmp_path / "cache", allowed=AllowList(directories=[tmp_path / "in"]))
    with pytest.raises(Forbidden):
        cache.load(reference("path", tmp_path / "nowhere"))


# -- hub ---------------------------------------------------------------------------------------------------------------


class DirectoryHub:
    """A hub that is a directory: what a branch means can be moved, and questions are counted."""

    def __init__(self, directory: Path, commit: str) -> None:
        self.directory, self.commit, self.questions = directory, commit, 0

    def snapshot(self, name: str, revision: str | None) -> Snapshot:
        self.questions += 1
        files = tuple(path.name for path in self.directory.iterdir())
        is_commit = revision is not None and len(revision) == 40
        return Snapshot(revision or "" if is_commit else self.commit, files, 1)

    def download(self, name: str, snapshot: Snapshot, directory: Path, progress: Progress) -> None:
        for file in snapshot.files:
            shutil.copyfile(self.directory / file, directory / file)


def test_branch_is_pinned_when_first_resolved(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "hub")
    hub = DirectoryHub(tmp_path / "hub", "1" * 40)
    main = Reference("hub:org/tiny", "hub", "org/tiny")
    first = ModelCache(tmp_path / "cache", hub=hub).load(main)
    assert list_local(tmp_path / "cache")[0].model.pinned == f"hub:org/tiny@{'1' * 40}"
    hub.commit, asked = "2" * 40, hub.questions
    again = ModelCache(tmp_path / "cache", hub=hub).load(main)
    assert hub.questions == asked, "a pinned and cached model needs no network"
    assert again.card == first.card
    other = replace(main, text=f"hub:org/tiny@{'2' * 40}", revision="2" * 40)
    progress = Recorder()
    ModelCache(tmp_path / "cache", hub=hub).load(other, progress=progress)
    assert "same configuration and weights as hub:org/tiny" in progress.logs[0]


def test_hub_bin_weights_are_converted_and_dropped(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "hub", as_bin=True)
    hub = DirectoryHub(tmp_path / "hub", "1" * 40)
    ModelCache(tmp_path / "cache", hub=hub).load(Reference("hub:org/tiny", "hub", "org/tiny"))
    directory = Path(list_local(tmp_path / "cache")[0].model.directory)
    assert not list(directory.glob("*.bin"))
    assert list(directory.glob("*.safetensors"))


def test_only_plain_files_are_taken_from_the_hub() -> None:
    plain, other = (
        ["config.json", "model.safetensors"],
        ["pytorch_model.bin", "modeling_x.py", "onnx/model.safetensors"],
    )
    assert choose_files([*plain, *other]) == ("config.json", "model.safetensors")
    assert choose_files(["config.json", "pytorch_model.bin"]) == ("config.json", "pytorch_model.bin")
    assert choose_files(["config.json", "tf_model.h5"]) == ()


def test_hub_that_cannot_be_reached_is_said_plainly(tmp_path: Path) -> None:
    hub = HuggingFaceHub("http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(ServiceError, match=r"cannot be reached for hub:org/tiny .*path: or a gguf:"):
        ModelCache(tmp_path / "cache", hub=hub).load(Reference("hub:org/tiny", "hub", "org/tiny"))


# -- catalogue and packages --------------------------------------------------------------------------------------------


def test_catalogue_reference_names_its_parts() -> None:
    entry = CATALOGUE["smollm2-135m-instruct-q4"]
    assert WheelMember.parse(entry.reference.removeprefix("pypi:")) == entry.parts[0]
    assert entry_for(entry.reference) is entry
    assert len(CATALOGUE["gemma3-270m-q4"].parts) == 4


def test_package_that_is_not_there_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = Reference("pypi:acdc-no-such==1#x.gguf", "pypi", "acdc-no-such", "1", "x.gguf")
    with pytest.raises(UnknownModel, match="acdc-no-such==1"):
        ModelCache(tmp_path / "cache").load(missing)


def test_facts_are_read_from_the_header(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    facts = read_gguf_facts(tmp_path / "tiny.gguf")
    assert (facts.architecture, facts.name, facts.quantisation) == ("llama", "Tiny", None)
