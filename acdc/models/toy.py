"""A small GPT-2-like transformer of our own, for hand-wired and trained toy models.

Flags switch parts off: `attention_only` (no MLPs), `no_norm` (no LayerNorms, exact arithmetic for hand-wired weights),
`bidirectional` (no causal mask). Saved and loaded like any Hugging Face model, as `config.json` + safetensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

MODEL_TYPE = "acdc-toy"


class ToyConfig(PretrainedConfig):
    """Sizes and flags. d_head is free: n_heads * d_head need not be d_model."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 16,
        n_positions: int = 32,
        d_model: int = 16,
        n_layers: int = 2,
        n_heads: int = 2,
        d_head: int = 8,
        d_mlp: int = 32,
        attention_only: bool = False,
        no_norm: bool = False,
        bidirectional: bool = False,
        attention_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.d_head = d_head
        self.d_mlp = d_mlp
        self.attention_only = attention_only
        self.no_norm = no_norm
        self.bidirectional = bidirectional
        self.attention_scale = attention_scale  # 1 / sqrt(d_head) when left out
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class ToyAttention(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        width = config.n_heads * config.d_head
        self.n_heads = config.n_heads
        self.scale = config.attention_scale if config.attention_scale is not None else config.d_head**-0.5
        self.is_causal = not config.bidirectional
        self.q = nn.Linear(config.d_model, width)
        self.k = nn.Linear(config.d_model, width)
        self.v = nn.Linear(config.d_model, width)
        self.out = nn.Linear(width, config.d_model)

    def forward(self, x: Tensor) -> Tensor:  # [batch, pos, d_model] -> the same
        batch, length, _ = x.shape
        q, k, v = (part(x).view(batch, length, self.n_heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = q @ k.transpose(-1, -2) * self.scale  # [batch, head, pos, pos]
        if self.is_causal:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            weights = weights.masked_fill(future, float("-inf"))
        z = weights.softmax(-1) @ v
        out: Tensor = self.out(z.transpose(1, 2).reshape(batch, length, -1))
        return out


class ToyMlp(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_mlp)
        self.activation = nn.ReLU()
        self.down = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.activation(self.up(x)))
        return out


class ToyLayer(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.attention_norm = _norm(config)
        self.attention = ToyAttention(config)
        self.mlp_norm = None if config.attention_only else _norm(config)
        self.mlp = None if config.attention_only else ToyMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.mlp(self.mlp_norm(x))
        return x


class ToyTransformer(PreTrainedModel):
    config_class = ToyConfig
    _no_split_modules = ("ToyLayer",)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Embedding(config.n_positions, config.d_model)
        self.layers = nn.ModuleList(ToyLayer(config) for _ in range(config.n_layers))
        self.final_norm = _norm(config)
        self.unembed = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids) + self.position(positions)
        for layer in self.layers:
            x = layer(x)
        return CausalLMOutput(logits=self.unembed(self.final_norm(x)))


def _norm(config: ToyConfig) -> nn.Module:
    return nn.Identity() if config.no_norm else nn.LayerNorm(config.d_model)
