"""Tiny random models written on the spot: a Llama directory with a tokenizer, and a GGUF file. No network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from acdc.models.reference import Reference

D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_KV_HEADS = 16, 32, 2, 4, 2
# Two merges: older readers mistake a list of one for a word.
WORDS = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "cd"]


def write_tiny_llama(directory: Path, *, seed: int = 0, as_bin: bool = False) -> LlamaForCausalLM:
    """A Llama model with a byte-level tokenizer, as a Hugging Face directory."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    if as_bin:
        (directory / "model.safetensors").unlink()
        torch.save(model.state_dict(), directory / "pytorch_model.bin")
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(WORDS)}, merges=[("a", "b"), ("c", "d")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(directory)
    return model


def write_tiny_gguf(path: Path, *, seed: int = 0, spoil: str | None = None, without: str | None = None) -> None:
    """A Llama GGUF file in float32. spoil: a tensor that gets a NaN. without: a tensor that is left out."""
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("Tiny")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] + [1] * (len(WORDS) - 1))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    generator = np.random.default_rng(seed)
    for name, shape in _gguf_shapes().items():
        values = generator.normal(size=shape).astype(np.float32)
        if name == spoil:
            values.flat[3] = np.nan
        if name != without:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_shapes() -> dict[str, tuple[int, ...]]:
    kv = D_MODEL * N_KV_HEADS // N_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(WORDS), D_MODEL), "output_norm.weight": (D_MODEL,)}
    for layer in range(N_LAYERS):
        block = {
            "attn_norm": (D_MODEL,),
            "attn_q": (D_MODEL, D_MODEL),
            "attn_k": (kv, D_MODEL),
            "attn_v": (kv, D_MODEL),
            "attn_output": (D_MODEL, D_MODEL),
            "ffn_norm": (D_MODEL,),
            "ffn_gate": (D_MLP, D_MODEL),
            "ffn_up": (D_MLP, D_MODEL),
            "ffn_down": (D_MODEL, D_MLP),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def reference(kind: str, path: Path) -> Reference:
    return Reference(f"{kind}:{path}", kind, str(path))


class Recorder:
    """A progress that keeps what it is told. on_phase: called with every phase's name."""

    def __init__(self, on_phase: Callable[[str], None] = lambda name: None) -> None:
        self.phases: list[str] = []
        self.logs: list[str] = []
        self.began = threading.Event()
        self._on_phase = on_phase

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)
        self._on_phase(name)

    def step(self, done: int, note: str = "") -> None: ...

    def log(self, message: str) -> None:
        self.logs.append(message)

    def save(self, checkpoint: object) -> None: ...

    def resume(self) -> None:
        return None
