"""From a directory of safetensors to a model in memory, ready for the executor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from acdc.circuit import ModelCard
from acdc.errors import BadWeights, OutOfMemory, UnsupportedModel
from acdc.models.fingerprint import fingerprint, read_config
from acdc.models.gguf_to_safetensors import require_all_tensors
from acdc.models.inventory import LocalModel
from acdc.models.toy import MODEL_TYPE as TOY
from acdc.models.toy import ToyConfig, ToyTransformer

_HOLLOW = 4  # times as large as its files: more than a table that is stored once and used twice can explain
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Loaded:
    """model: a transformers model in eval mode, its parameters without gradients. card: `parity` is still None."""

    model: Any
    tokenizer: Any
    card: ModelCard


def load_local(local: LocalModel, dtype: str, device: str) -> Loaded:
    """Load a model of the inventory. dtype: float32, float64 or bfloat16. device: auto, cpu or cuda.

    Raises UnsupportedModel where transformers cannot build it, BadWeights, OutOfMemory.
    """
    directory = Path(local.directory)
    with _quiet():
        model = _load_model(local, DTYPES[dtype], torch.device(choose_device(device)))
        tokenizer = _load_tokenizer(directory)
    card = ModelCard(
        reference=local.reference,
        title=local.title,
        architecture=local.model_type,
        fingerprint=local.fingerprint,
        tokenizer_sha256=local.tokenizer_sha256,
        n_parameters=local.n_parameters,
        quantisation=local.quantisation,
        tuning=local.tuning,
    )
    return Loaded(model, tokenizer, card)


def describe_loaded(model: Any, tokenizer: Any, title: str | None = None) -> Loaded:
    """A model that the caller has in memory already, as if it had been loaded: nothing of it is changed.

    Its fingerprint is of the tensors as they are now, so it differs from the files' where the dtype does.
    Raises BadWeights for NaN or infinity.
    """
    config = model.config.to_dict()
    found = fingerprint(config, sorted(_own_tensors(model)))
    name = title or str(getattr(model.config, "name_or_path", "")) or type(model).__name__
    card = ModelCard(
        reference=f"loaded:{name}",
        title=name,
        architecture=str(config.get("model_type", "unknown")),
        fingerprint=found.sha256,
        tokenizer_sha256=_hash_loaded_tokenizer(tokenizer),
        n_parameters=found.n_parameters,
    )
    return Loaded(model, tokenizer, card)


def choose_device(device: str) -> str:
    """`auto` is a GPU where there is one. Raises UnsupportedModel for cuda where there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModel("device 'cuda' was asked for and this machine has none; use 'cpu' or 'auto'")
    return device


def _load_model(local: LocalModel, dtype: torch.dtype, device: torch.device) -> Any:
    directory = Path(local.directory)
    config = read_config(directory)
    model_type = config.get("model_type")
    loader = ToyTransformer if model_type == TOY else transformers.AutoModelForCausalLM
    # Eager attention: the one implementation that every architecture has, and the one that is summed in plain order.
    options: dict[str, Any] = {} if model_type == TOY else {"attn_implementation": "eager", "trust_remote_code": False}
    try:
        if "quantization_config" not in config:  # packed numbers cannot be counted
            _refuse_hollow(local, is_toy=model_type == TOY)
        model, info = loader.from_pretrained(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except SafetensorError as error:
        raise BadWeights(f"{directory.name}: a safetensors file is damaged ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError) as error:
        raise UnsupportedModel(
            f"transformers {transformers.__version__} cannot build the {model_type!r} model in {directory}: {error}"
        ) from error
    require_all_tensors(str(directory), info)
    try:
        return model.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the model does not fit on {device}: {error}") from None


def _refuse_hollow(local: LocalModel, *, is_toy: bool) -> None:
    """Before transformers fills in what the files lack, at the size that config.json asks for: that may be any, and
    where it says nothing it is billions of parameters."""
    options: dict[str, Any] = {} if is_toy else {"trust_remote_code": False}
    config = (ToyConfig if is_toy else transformers.AutoConfig).from_pretrained(
        local.directory, local_files_only=True, **options
    )
    build = ToyTransformer if is_toy else transformers.AutoModelForCausalLM.from_config
    with torch.device("meta"):  # shapes without memory
        described = build(config, **options)
    n_described = sum(parameter.numel() for parameter in described.parameters())
    if n_described > _HOLLOW * local.n_parameters:
        raise BadWeights(
            f"the files in {local.directory} hold {local.n_parameters:,} of the {n_described:,} numbers of the model "
            "that config.json describes; fetch the weights again, or mend config.json"
        )


def _load_tokenizer(directory: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError, OSError) as error:
        raise UnsupportedModel(f"no tokenizer can be built from {directory}: {error}") from error


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and the buffers that are saved."""
    yield from model.named_parameters()
    saved = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in saved)


def _hash_loaded_tokenizer(tokenizer: Any) -> str:
    import hashlib
    import json

    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{vocabulary} {tokenizer.bos_token_id} {tokenizer.eos_token_id}".encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice of transformers in our logs."""
    logging = transformers.utils.logging
    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
