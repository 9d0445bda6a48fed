"""PyTorch's `.bin` weights to safetensors. A pickle can name code to run: it is read with `weights_only=True`, which
builds tensors and nothing else, and in a child process all the same.

Run as `python -m acdc.models.bin_to_safetensors SOURCE_DIRECTORY DIRECTORY`.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path

from acdc.errors import BadWeights
from acdc.models.child import work_as_child
from acdc.models.inventory import full_disk_named

INDEX = "model.safetensors.index.json"


def bin_files(directory: Path) -> list[Path]:
    """The `.bin` weights of a Hugging Face directory (other `.bin` files lie there too, such as optimizer states)."""
    return sorted(directory.glob("pytorch_model*.bin"))


def convert_bin(source: Path, target: Path) -> None:
    """Write the weights of `source` into `target` as safetensors, and copy configuration and tokenizer.

    Raises BadWeights, StorageError.
    """
    files = bin_files(source)
    with full_disk_named(target, sum(path.stat().st_size for path in files)):
        weight_map: dict[str, str] = {}
        for path in files:
            name = path.with_suffix(".safetensors").name
            weight_map |= dict.fromkeys(_convert_file(path, target / name), name)
        (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        for path in source.iterdir() if source != target else ():
            if path.suffix in (".json", ".txt", ".model", ".jinja") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)


def _convert_file(path: Path, target: Path) -> list[str]:
    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadWeights(
            f"{path.name} is damaged, or holds more than plain tensors ({first}); use safetensors"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise BadWeights(f"{path.name} is no table of tensors")
    # Tied tensors share memory, which safetensors does not write: each gets its own.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, target, {"format": "pt"})
    return list(state)


def _main(arguments: Sequence[str]) -> None:
    source, target = arguments
    convert_bin(Path(source), Path(target))


if __name__ == "__main__":
    work_as_child(_main)
