"""A model's size from its config.json alone: no weights, no torch, no transformers.

For plans, made before anything is loaded. What a configuration does not say is unknown (None), never guessed; the
engine reads the loaded model itself and does not use this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acdc.errors import GraphMismatch
from acdc.graph import GraphShape
from acdc.models.catalogue import Size

MOST_PARAMETERS = 10**14
MOST_HEADS = 10**5  # of all layers: a plan draws up the whole graph
"""Larger sizes than these are slips of whoever wrote the file."""


@dataclass(frozen=True)
class _Family:
    """How a family names its sizes, and what its blocks are made of.

    mlp_matrices: 3 where the MLP is gated. has_bias: on every projection. vectors: norms over d_model in a layer.
    """

    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    d_model: str = "hidden_size"
    d_mlp: str = "intermediate_size"
    positions: str | None = None
    mlp_matrices: int = 3
    has_bias: bool = False
    qkv_bias: bool = False
    vectors: int = 2
    norm_bias: bool = False
    has_head_norms: bool = False
    is_tied: bool = False
    heads_share_norm: bool = False


_LLAMA = _Family()
_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(has_head_norms=True),
    "gemma2": _Family(vectors=4, is_tied=True, heads_share_norm=True),
    "gemma3_text": _Family(vectors=4, is_tied=True, heads_share_norm=True, has_head_norms=True),
    "gpt2": _Family("n_layer", "n_head", "n_embd", "n_inner", "n_positions", 2, True, norm_bias=True, is_tied=True),
    "gpt_neox": _Family(mlp_matrices=2, has_bias=True, norm_bias=True),
    "acdc-toy": _Family("n_layers", "n_heads", "d_model", "d_mlp", "n_positions", 2, True, norm_bias=True),
}


def read_config(directory: Path) -> Mapping[str, Any]:
    """The config.json in a directory; empty without a readable one."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def size_of(config: Mapping[str, Any]) -> Size | None:
    """None for a family that is not known here, or where a number that its size depends on is missing or senseless."""
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return None
    try:
        return _size(family, config)
    except (KeyError, TypeError, ValueError, OverflowError, GraphMismatch):
        return None


def count_tables(config: Mapping[str, Any]) -> int:
    """1 where embedding and unembedding are one matrix, else 2."""
    family = _FAMILIES.get(str(config.get("model_type")), _LLAMA)
    return 1 if config.get("tie_word_embeddings", family.is_tied) else 2


def _size(family: _Family, config: Mapping[str, Any]) -> Size:
    d, n_heads = int(config[family.d_model]), int(config[family.heads])
    is_toy = config["model_type"] == "acdc-toy"
    d_mlp = 4 * d if family.d_mlp == "n_inner" and not config.get("n_inner") else int(config[family.d_mlp])
    shape = GraphShape(
        int(config[family.layers]),
        n_heads,
        int(config.get("num_key_value_heads") or n_heads),
        has_mlp=not (is_toy and config.get("attention_only", False)),
        is_parallel=config["model_type"] == "gpt_neox" and bool(config.get("use_parallel_residual", True)),
        heads_share_norm=family.heads_share_norm,
    )
    d_head = int(config.get("head_dim") or config.get("d_head") or d // n_heads)
    if is_toy and config.get("no_norm", False):
        family = replace(family, vectors=0)
    vocab = int(config["vocab_size"])
    n_parameters = (
        count_tables(config) * vocab * d
        + (int(config[family.positions]) * d if family.positions else 0)
        + shape.n_layers * _layer_parameters(family, config, shape, d, d_head, d_mlp)
        + (d * (1 + family.norm_bias) if family.vectors else 0)  # the final norm
    )
    if min(d, d_head, d_mlp, vocab) < 1:
        raise ValueError("a size is not positive")
    if n_parameters > MOST_PARAMETERS or shape.n_layers * shape.n_heads > MOST_HEADS:
        raise ValueError("no model is that large")
    return Size(shape, d, d_mlp, vocab, n_parameters)


def _layer_parameters(
    family: _Family, config: Mapping[str, Any], shape: GraphShape, d: int, d_head: int, d_mlp: int
) -> int:
    q, kv = shape.n_heads * d_head, shape.n_kv_heads * d_head
    has_attention_bias = bool(config.get("attention_bias", family.has_bias))
    n = d * (2 * q + 2 * kv)
    n += q + 2 * kv if has_attention_bias or family.qkv_bias else 0
    n += d if has_attention_bias else 0
    n += 2 * d_head if family.has_head_norms else 0
    if shape.has_mlp:
        n += family.mlp_matrices * d * d_mlp
        if family.has_bias or config.get("mlp_bias", False):
            n += (family.mlp_matrices - 1) * d_mlp + d
    vectors = family.vectors if shape.has_mlp else family.vectors // 2
    return n + vectors * d * (1 + family.norm_bias)
