"""Which weights, exactly: one hash over configuration and tensors, one over the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from acdc.errors import BadWeights

# Where the files came from and what wrote them: no part of what they are.
_VOLATILE = {
    "_commit_hash",
    "_name_or_path",
    "_model_name_or_path",
    "dtype",
    "is_local",
    "local_files_only",
    "name_or_path",
    "torch_dtype",
    "transformers_version",
}
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class Fingerprint:
    """sha256: of configuration and weights. n_parameters: elements of all tensors."""

    sha256: str
    n_parameters: int


def fingerprint_directory(directory: Path) -> Fingerprint:
    """Of a directory with config.json and safetensors. Raises BadWeights for a file that is damaged, a tensor with a
    value that is not finite, or no tensor at all."""
    found = fingerprint(read_config(directory), _tensors(directory))
    if not found.n_parameters:
        raise BadWeights(f"the safetensors files in {directory} hold no tensors; fetch the weights again")
    return found


def fingerprint(config: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> Fingerprint:
    """`tensors` in the order of their names. Raises BadWeights that names a tensor with NaN or infinity."""
    digest = hashlib.sha256(_canonical(config))
    n_parameters = 0
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise BadWeights(f"tensor {name} has {count} values that are NaN or infinite; fetch the weights again")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes_of(tensor))
        n_parameters += tensor.numel()
    return Fingerprint(digest.hexdigest(), n_parameters)


def hash_tokenizer(directory: Path) -> str:
    """sha256 over the tokenizer's files."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        path = directory / name
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{name}\n".encode())
            digest.update(_canonical(json.loads(content)) if name == "tokenizer_config.json" else content)
    return digest.hexdigest()


def read_config(directory: Path) -> dict[str, Any]:
    """config.json. Raises BadWeights where it is damaged."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BadWeights(f"{directory / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise BadWeights(f"{directory / 'config.json'} is no configuration")
    return config


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model: those of the index, where there is one."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BadWeights(f"{index} is no index of safetensors files") from None
    # The last part only: an index must not point outside its directory.
    return sorted(directory / Path(str(name)).name for name in names)


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    where: dict[str, Path] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                where.update(dict.fromkeys(file.keys(), path))
        except (SafetensorError, OSError) as error:
            raise BadWeights(f"{path.name} is truncated, damaged or no safetensors file ({error})") from None
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as file:
            yield name, file.get_tensor(name)


def _bytes_of(tensor: Tensor) -> memoryview:
    """Without a copy, and for types that numpy lacks (bfloat16) too."""
    flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def _canonical(config: Mapping[str, Any]) -> bytes:
    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    return json.dumps(kept, sort_keys=True).encode()
