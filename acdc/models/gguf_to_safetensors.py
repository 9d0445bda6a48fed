"""GGUF to safetensors, once: transformers reads and dequantises the file, this module judges it and writes it down.

Run as a child process: `python -m acdc.models.gguf_to_safetensors FILE DIRECTORY ARCHITECTURE`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc.errors import BadWeights, UnsupportedModel
from acdc.models.child import work_as_child
from acdc.models.inventory import full_disk_named

BYTES_PER_WEIGHT = 4  # float32: what dequantising gives, and exact
TOKENIZER_BYTES = 64 * 2**20  # a generous bound of what is written beside the weights
# What the reader raises on bytes that are no GGUF file, or only the beginning of one.
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, EOFError, MemoryError, struct.error)


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF file says of itself. quantisation: such as Q4_1, None for unquantised weights."""

    architecture: str
    name: str
    quantisation: str | None
    n_weights: int

    @property
    def converted_bytes(self) -> int:
        """Disk space that the conversion needs."""
        return self.n_weights * BYTES_PER_WEIGHT + TOKENIZER_BYTES


def read_gguf_facts(path: Path) -> GgufFacts:
    """Read the header and check that every tensor lies inside the file. Raises BadWeights with the file's name."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        facts = GgufFacts(
            architecture=str(reader.fields["general.architecture"].contents()),
            name=_field(reader, "general.name") or path.stem,
            quantisation=_quantisation(_field(reader, "general.file_type")),
            n_weights=sum(int(tensor.n_elements) for tensor in reader.tensors),
        )
    except _DAMAGE as error:
        raise BadWeights(
            f"{path.name} is truncated, damaged or no GGUF file at all ({error}); fetch it again"
        ) from None
    if not facts.n_weights:
        raise BadWeights(f"{path.name} holds no weights")
    return facts


def convert_gguf(source: Path, target: Path, architecture: str) -> None:
    """Write config, tokenizer and float32 safetensors of `source`, whose header was found good, into `target`.

    Raises BadWeights, UnsupportedModel, StorageError.
    """
    import torch
    import transformers

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # younger versions may keep the weights packed; older ones never do
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            **where, **options, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except (*_DAMAGE, NotImplementedError, ImportError, AttributeError, RuntimeError, OSError) as error:
        raise UnsupportedModel(
            f"{source.name}: transformers {transformers.__version__} cannot build a model of type {architecture!r} and "
            f"its tokenizer from this GGUF file ({type(error).__name__}: {error})"
        ) from error
    require_all_tensors(source.name, info)
    # The weights are plain now; transformers refuses to write models that it still takes for quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with full_disk_named(target, model.num_parameters() * BYTES_PER_WEIGHT + TOKENIZER_BYTES):
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def require_all_tensors(name: str, loading_info: Any) -> None:
    """transformers fills in tensors that a file lacks with random numbers; here that is an error."""
    faults = [f"{key} is missing" for key in sorted(loading_info["missing_keys"])]
    faults += [f"{key[0]} has the wrong shape" for key in sorted(loading_info["mismatched_keys"])]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise BadWeights(f"{name} does not hold the whole model: {'; '.join(faults[:5])}{more}")


def _field(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _quantisation(file_type: int | None) -> str | None:
    from gguf import LlamaFileType

    if file_type is None or file_type == LlamaFileType.ALL_F32:
        return None
    name: str = LlamaFileType(file_type).name
    return name.removeprefix("MOSTLY_")


def _main(arguments: Sequence[str]) -> None:
    source, target, architecture = arguments
    convert_gguf(Path(source), Path(target), architecture)


if __name__ == "__main__":
    work_as_child(_main)
