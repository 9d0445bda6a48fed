"""Sizes read from config.json, against the models that transformers builds from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from torch import nn

from acdc.models.catalogue import CATALOGUE
from acdc.models.config_size import count_tables, read_config, size_of
from acdc.models.toy import ToyConfig, ToyTransformer

_SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
CONFIGS = {
    "llama": transformers.LlamaConfig(**_GROUPED),
    "llama tied": transformers.LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "llama with biases": transformers.LlamaConfig(**_GROUPED, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**_GROUPED, head_dim=6),
    "qwen2": transformers.Qwen2Config(**_GROUPED),
    "qwen3": transformers.Qwen3Config(**_GROUPED, head_dim=16),
    "gemma2": transformers.Gemma2Config(**_GROUPED, head_dim=16),
    "gemma3": transformers.Gemma3TextConfig(**_GROUPED, head_dim=16),
    "gpt2": transformers.GPT2Config(n_layer=3, n_head=4, n_embd=24, n_positions=32, vocab_size=50),
    "gpt2, own width": transformers.GPT2Config(
        n_layer=3, n_head=4, n_embd=24, n_positions=32, vocab_size=50, n_inner=10
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**_SMALL),
    "gpt_neox in sequence": transformers.GPTNeoXConfig(**_SMALL, use_parallel_residual=False),
    "toy": ToyConfig(n_layers=3, n_heads=4, d_model=24, d_mlp=40, vocab_size=50),
    "toy without MLPs and norms": ToyConfig(
        n_layers=3, n_heads=4, d_model=24, vocab_size=50, attention_only=True, no_norm=True
    ),
    "toy without MLPs": ToyConfig(n_layers=3, n_heads=4, d_model=24, vocab_size=50, attention_only=True),
}


def build(config: transformers.PretrainedConfig) -> nn.Module:
    if isinstance(config, ToyConfig):
        return ToyTransformer(config)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_parameters_and_shape_are_those_of_the_model_that_is_built(
    config: transformers.PretrainedConfig, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    size = size_of(read_config(tmp_path))
    assert size is not None
    assert size.n_parameters == sum(p.numel() for p in build(config).parameters())  # shared ones come once
    assert (size.shape.n_layers, size.shape.n_heads, size.d_model, size.vocab_size) == (3, 4, 24, 50)
    assert size.shape.n_kv_heads == (getattr(config, "num_key_value_heads", None) or 4)
    assert size.shape.has_mlp is not getattr(config, "attention_only", False)
    assert size.shape.is_parallel is getattr(config, "use_parallel_residual", False)
    assert size.shape.heads_share_norm is config.model_type.startswith("gemma")


def test_the_catalogue_agrees_with_the_published_configurations() -> None:
    smollm2 = {**_SMALL, "model_type": "llama", "tie_word_embeddings": True, "vocab_size": 49_152, "hidden_size": 576}
    smollm2 |= {"intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    assert size_of(smollm2) == CATALOGUE["smollm2-135m-instruct-q4"].size
    gemma = {"model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 640, "intermediate_size": 2048}
    gemma |= {"num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    assert size_of(gemma) == CATALOGUE["gemma3-270m-q4"].size


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mamba", "hidden_size": 8},
        {"model_type": "llama", "hidden_size": 24},
        {**_SMALL, "model_type": "llama", "hidden_size": "wide"},
        {**_SMALL, "model_type": "llama", "num_key_value_heads": 3},
        {**_SMALL, "model_type": "llama", "num_attention_heads": 0},
        {**_SMALL, "model_type": "llama", "vocab_size": -1},
    ],
)
def test_a_configuration_that_does_not_say_enough_gives_no_size(config: dict[str, object]) -> None:
    assert size_of(config) is None


@pytest.mark.parametrize("text", [None, "", "{", "[1, 2]", "\udcff"])
def test_an_unreadable_file_is_an_empty_configuration(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_config(tmp_path) == {}


def test_tied_tables_are_counted_once() -> None:
    assert count_tables({"model_type": "gpt2"}) == 1
    assert count_tables({"model_type": "llama"}) == 2
    assert count_tables({"model_type": "llama", "tie_word_embeddings": True}) == 1
