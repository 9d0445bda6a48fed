"""Architectures as data: where each family keeps its parts. A new one is a new row of ARCHITECTURES.

Each row names paths inside the Hugging Face module. What a row cannot express is refused by name, and what it
expresses wrongly is caught by the parity check (acdc.models.parity), so a row need not be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from acdc.errors import UnsupportedModel
from acdc.graph import Graph, GraphShape
from acdc.models.transformer import Layer, Mlp, MlpParts, Norm, Rope, Scale, Transformer, Unembed


@dataclass(frozen=True)
class Architecture:
    """Paths are dotted; those of a block are relative to it. Empty: the family has no such part.

    qkv: three paths, or one of a fused projection. fused: how its rows are laid out, "blocks" (all q, all k, all v) or
    "heads" (q, k, v per head). norm_offset: added to RMS norm weights (Gemma stores weight - 1). mlp_up, mlp_gate,
    activation, mlp_down: parts of the MLP, for methods that change how gradients pass them.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str
    tokens: str
    final_norm: str
    unembed: str
    read_norm: str
    qkv: tuple[str, ...]
    out: str
    mlp_norm: str
    mlp: str
    mlp_up: str
    activation: str
    mlp_down: str
    mlp_gate: str = ""
    positions: str = ""
    rotary: str = ""
    post_attention_norm: str = ""
    post_mlp_norm: str = ""
    head_norms: tuple[str, str] | None = None
    fused: str = ""
    norm_offset: float = 0.0
    parallel_flag: str = ""  # configuration attribute; true means parallel attention and MLP


_LLAMA_BLOCK: dict[str, Any] = {
    "blocks": "model.layers",
    "tokens": "model.embed_tokens",
    "final_norm": "model.norm",
    "unembed": "lm_head",
    "rotary": "model.rotary_emb",
    "read_norm": "input_layernorm",
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": "self_attn.o_proj",
    "mlp": "mlp",
    "mlp_up": "up_proj",
    "mlp_gate": "gate_proj",
    "activation": "act_fn",
    "mlp_down": "down_proj",
}
_GEMMA_BLOCK: dict[str, Any] = {
    **_LLAMA_BLOCK,
    "mlp_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
    "norm_offset": 1.0,
}
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")

ARCHITECTURES = (
    Architecture(
        name="gpt2",
        model_types=("gpt2",),
        blocks="transformer.h",
        tokens="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        unembed="lm_head",
        read_norm="ln_1",
        qkv=("attn.c_attn",),
        fused="blocks",
        out="attn.c_proj",
        mlp_norm="ln_2",
        mlp="mlp",
        mlp_up="c_fc",
        activation="act",
        mlp_down="c_proj",
    ),
    Architecture(
        name="llama", model_types=("llama", "mistral", "qwen2"), mlp_norm="post_attention_layernorm", **_LLAMA_BLOCK
    ),
    Architecture(
        name="qwen3",
        model_types=("qwen3",),
        mlp_norm="post_attention_layernorm",
        head_norms=_HEAD_NORMS,
        **_LLAMA_BLOCK,
    ),
    Architecture(name="gemma2", model_types=("gemma2",), **_GEMMA_BLOCK),
    Architecture(name="gemma3", model_types=("gemma3_text",), head_norms=_HEAD_NORMS, **_GEMMA_BLOCK),
    Architecture(
        name="gpt-neox",
        model_types=("gpt_neox",),
        blocks="gpt_neox.layers",
        tokens="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        unembed="lm_head",
        rotary="gpt_neox.rotary_emb",
        read_norm="input_layernorm",
        qkv=("attention.query_key_value",),
        fused="heads",
        out="attention.dense",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        mlp_up="dense_h_to_4h",
        activation="act",
        mlp_down="dense_4h_to_h",
        parallel_flag="use_parallel_residual",
    ),
    Architecture(
        name="toy",
        model_types=("acdc-toy",),
        blocks="layers",
        tokens="embed",
        positions="position",
        final_norm="final_norm",
        unembed="unembed",
        read_norm="attention_norm",
        qkv=("attention.q", "attention.k", "attention.v"),
        out="attention.out",
        mlp_norm="mlp_norm",
        mlp="mlp",
        mlp_up="up",
        activation="activation",
        mlp_down="down",
    ),
)
_BY_TYPE = {model_type: row for row in ARCHITECTURES for model_type in row.model_types}

# Configuration flags that change the arithmetic in a way that no row expresses: refused unless they have this value.
_REFUSED_FLAGS: dict[str, Any] = {
    "add_cross_attention": False,
    "reorder_and_upcast_attn": False,
    "use_bidirectional_attention": False,
    "pretraining_tp": 1,
}


def describe(module: nn.Module) -> Architecture:
    """The row for a loaded model. Raises UnsupportedModel with the name of what is unknown."""
    config: Any = getattr(module, "config", None)
    model_type = getattr(config, "model_type", type(module).__name__)
    if model_type not in _BY_TYPE:
        known = ", ".join(sorted(_BY_TYPE))
        raise UnsupportedModel(f"no description for models of type {model_type!r}; described are: {known}")
    for flag, wanted in _REFUSED_FLAGS.items():
        value = getattr(config, flag, None)
        if value is not None and value != wanted:
            raise UnsupportedModel(f"models of type {model_type!r} with {flag} = {value!r} are not supported")
    return _BY_TYPE[model_type]


def wrap(module: nn.Module, *, split_position: bool = False) -> Transformer:
    """Arrange a loaded Hugging Face model for the executor, without changing it. Parity is checked elsewhere.

    split_position: make the position embedding a sender of its own; only for models with learned positions.
    Raises UnsupportedModel.
    """
    row = describe(module)
    config: Any = module.config
    _require_parts(module, row)
    if split_position and not row.positions:
        raise UnsupportedModel(f"{row.name} models have no position embedding to split off")
    n_heads, n_kv_heads, d_head, d_model = _sizes(module, row)
    blocks = list(attrgetter(row.blocks)(module))
    shape = GraphShape(
        n_layers=len(blocks),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        has_mlp=getattr(blocks[0], row.mlp.split(".")[0]) is not None,
        is_parallel=bool(row.parallel_flag and getattr(config, row.parallel_flag)),
        heads_share_norm=bool(row.post_attention_norm),
        split_position=split_position,
    )
    reader = _BlockReader(row, config, n_heads, n_kv_heads, d_head)
    with torch.no_grad():
        layers = tuple(reader.read(block, index) for index, block in enumerate(blocks))
    unembed = attrgetter(row.unembed)(module)
    return Transformer(
        module=module,
        architecture=row.name,
        graph=Graph(shape),
        layers=layers,
        embed=_embedder(module, row, split_position),
        unembed=Unembed(
            _norm(attrgetter(row.final_norm)(module), row.norm_offset),
            unembed.weight,
            getattr(unembed, "bias", None),
            getattr(config, "final_logit_softcapping", None),
        ),
        rope=_rope_maker(module, row, tuple(dict.fromkeys(layer.rope_type for layer in layers))),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_model=d_model,
        vocab_size=int(unembed.weight.shape[0]),
        max_positions=getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None),
        is_causal=bool(getattr(_attention(blocks[0], row), "is_causal", True)),
    )


def _require_parts(module: nn.Module, row: Architecture) -> None:
    missing = []
    for path in (row.blocks, row.tokens, row.final_norm, row.unembed, row.positions, row.rotary):
        if path:
            try:
                attrgetter(path)(module)
            except AttributeError:
                missing.append(path)
    if missing:
        raise UnsupportedModel(f"a {row.name} model should have {', '.join(missing)}; {type(module).__name__} has not")


def _attention(block: nn.Module, row: Architecture) -> Any:
    return attrgetter(row.out.rpartition(".")[0])(block)


def _sizes(module: nn.Module, row: Architecture) -> tuple[int, int, int, int]:
    """heads, key/value heads, d_head, d_model"""
    config: Any = module.config
    n_heads = int(getattr(config, "num_attention_heads", None) or config.n_heads)
    n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    out = _weight(attrgetter(row.out)(attrgetter(row.blocks)(module)[0]))  # [d, H * e]
    return n_heads, n_kv_heads, out.shape[1] // n_heads, out.shape[0]


@dataclass(frozen=True)
class _BlockReader:
    """Turns one Hugging Face block into a Layer."""

    row: Architecture
    config: Any
    n_heads: int
    n_kv_heads: int
    d_head: int

    def read(self, block: nn.Module, index: int) -> Layer:
        row = self.row
        norm = _norm(attrgetter(row.read_norm)(block), row.norm_offset)
        w_read, b_read = self._projections(block)
        b_read = b_read + (0 if norm.bias is None else w_read @ norm.bias)
        out = attrgetter(row.out)(block)
        w_total = _weight(out).T  # [H * e, d]
        b_out = out.bias
        share_scale, w_out = None, w_total
        if row.post_attention_norm:
            post = _norm(attrgetter(row.post_attention_norm)(block), row.norm_offset)
            if b_out is not None or post.bias is not None:
                raise UnsupportedModel(f"{row.name}: a post-norm together with an attention output bias")
            share_scale = post.scale
            w_out = _fold(w_total, share_scale, None) if share_scale.kind == "layer" else w_total
            w_out = w_out if post.weight is None else w_out * post.weight
        layer_type = _layer_type(self.config, index)
        attention = _attention(block, row)
        return Layer(
            read_scale=norm.scale,
            w_read=_fold(w_read, norm.scale, norm.weight).contiguous(),
            b_read=b_read,
            w_out=w_out.reshape(self.n_heads, self.d_head, -1).contiguous(),
            w_total=w_total.contiguous() if share_scale is not None else None,
            b_out=b_out,
            share_scale=share_scale,
            head_norm_q=self._norm_at(block, row.head_norms[0]) if row.head_norms else None,
            head_norm_k=self._norm_at(block, row.head_norms[1]) if row.head_norms else None,
            attention_scale=_attention_scale(attention),
            softcap=getattr(attention, "attn_logit_softcapping", None),
            window=_window(self.config, attention, layer_type),
            rope_type=layer_type,
            mlp=self._mlp(block),
        )

    def _projections(self, block: nn.Module) -> tuple[Tensor, Tensor]:
        """[R, e, d] and [R, e] in the order q, k, v."""
        row, e = self.row, self.d_head
        parts = [attrgetter(path)(block) for path in row.qkv]
        weight = torch.cat([_weight(part) for part in parts])  # [R * e, d]
        biases = [part.bias for part in parts]
        bias = weight.new_zeros(len(weight)) if biases[0] is None else torch.cat(biases)
        weight, bias = weight.reshape(-1, e, weight.shape[1]), bias.reshape(-1, e)
        if row.fused == "heads":  # rows are (q0, k0, v0, q1, ...): to (q0, q1, ..., k0, ...)
            order = torch.arange(len(weight)).reshape(self.n_heads, 3).T.reshape(-1)
            weight, bias = weight[order], bias[order]
        return weight, bias

    def _mlp(self, block: nn.Module) -> Mlp | None:
        row = self.row
        module = attrgetter(row.mlp)(block)
        if module is None:
            return None
        before = self._norm_at(block, row.mlp_norm)
        after = self._norm_at(block, row.post_mlp_norm) if row.post_mlp_norm else None
        return Mlp(before, module, after, _parts(module, row))

    def _norm_at(self, block: nn.Module, path: str) -> Norm:
        return _norm(attrgetter(path)(block), self.row.norm_offset)


def _parts(mlp: nn.Module, row: Architecture) -> MlpParts | None:
    up, gate, activation, down = (
        getattr(mlp, path, None) if path else None for path in (row.mlp_up, row.mlp_gate, row.activation, row.mlp_down)
    )
    if up is None or activation is None or down is None or (row.mlp_gate and gate is None):
        return None
    return MlpParts(up, gate, activation, down)


def _weight(linear: Any) -> Tensor:
    """[out, in] of a Linear, or of GPT-2's Conv1D, which stores the transpose."""
    weight: Tensor = linear.weight.detach()
    return weight.T if type(linear).__name__ == "Conv1D" else weight


def _norm(norm: nn.Module, offset: float) -> Norm:
    """Raises UnsupportedModel for a norm of an unknown kind."""
    if isinstance(norm, nn.Identity):
        return Norm(norm, Scale("none"), None, None)
    weight = getattr(norm, "weight", None)
    if isinstance(norm, nn.LayerNorm):
        return Norm(norm, Scale("layer", norm.eps), weight, norm.bias)
    if type(norm).__name__.endswith("RMSNorm") and weight is not None:
        eps: Any = getattr(norm, "variance_epsilon", None) or norm.eps
        return Norm(norm, Scale("rms", float(eps)), weight.detach() + offset if offset else weight, None)
    raise UnsupportedModel(f"norm of unknown kind {type(norm).__name__}")


def _fold(weight: Tensor, scale: Scale, norm_weight: Tensor | None) -> Tensor:
    """W -> W diag(norm_weight), and without its mean over inputs where the norm centres. [..., d]"""
    folded = weight if norm_weight is None else weight * norm_weight
    return folded - folded.mean(-1, keepdim=True) if scale.kind == "layer" else folded


def _attention_scale(attention: Any) -> float:
    scale = getattr(attention, "scaling", None) or getattr(attention, "scale", None)
    if scale is None:
        raise UnsupportedModel(f"{type(attention).__name__} does not say how it scales its attention")
    return float(scale)


def _layer_type(config: Any, index: int) -> str:
    types = getattr(config, "layer_types", None)
    return str(types[index]) if types else "full_attention"


def _window(config: Any, attention: Any, layer_type: str) -> int | None:
    """Tokens a query can see, itself included; None where all before it."""
    if layer_type == "sliding_attention":
        return int(config.sliding_window)
    if getattr(config, "layer_types", None) is None and getattr(config, "model_type", "") == "mistral":
        return getattr(config, "sliding_window", None)
    return None


def _embedder(module: nn.Module, row: Architecture, split_position: bool) -> Callable[[Tensor], Tensor]:
    tokens = attrgetter(row.tokens)(module)
    positions = attrgetter(row.positions)(module) if row.positions else None

    def embed(ids: Tensor) -> Tensor:
        x = tokens(ids)
        if positions is None:
            return x.unsqueeze(0)  # type: ignore[no-any-return]
        at = positions(torch.arange(ids.shape[1], device=ids.device)).expand_as(x)
        return torch.stack((x, at)) if split_position else (x + at).unsqueeze(0)

    return embed


def _rope_maker(module: nn.Module, row: Architecture, layer_types: tuple[str, ...]) -> Callable[[Tensor], Rope]:
    if not row.rotary:
        return lambda x: {}
    rotary = attrgetter(row.rotary)(module)
    per_type = hasattr(rotary, f"{layer_types[0]}_inv_freq")

    def make(x: Tensor) -> Rope:  # x: [batch, pos, d], for its device, dtype and length
        ids = torch.arange(x.shape[-2], device=x.device)[None]
        rope = {}
        for layer_type in layer_types:
            cos, sin = rotary(x, ids, layer_type) if per_type else rotary(x, ids)
            rope[layer_type] = (cos[:, None], sin[:, None])
        return rope

    return make
