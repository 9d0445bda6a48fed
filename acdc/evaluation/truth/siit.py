"""Models trained to hold a known program, as `benchmarks/truth/train_siit.py` trained and judged them."""

from __future__ import annotations

import functools
import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from acdc.evaluation.truth.high_level import HighLevel
from acdc.graph import BoolMatrix, Graph
from acdc.models.toy import ToyConfig, ToyTransformer
from acdc.tasks.prompts import Pair

DATA = Path(__file__).parent / "data" / "siit"
N_HEADS, D_HEAD, D_MLP = 4, 8, 128
N_PAIRS = 128
NEEDED = 0.995


@dataclass(frozen=True)
class Trained:
    """How well a trained model holds its program, on prompts that it was not trained on. seed: of its training.

    accuracy: of its answers. iia: agreement with the program when a node of it is exchanged, the worst node.
    strict_iia: accuracy when any other node is, the worst one. circuit_accuracy: of the true edges alone, all others
    carrying what they carry in another prompt.
    """

    seed: int
    steps: int
    accuracy: float
    iia: float
    strict_iia: float
    circuit_accuracy: float

    @property
    def worst(self) -> float:
        return min(self.accuracy, self.iia, self.strict_iia, self.circuit_accuracy)

    @property
    def is_accepted(self) -> bool:
        """The weights of a model that is not are not stored."""
        return self.worst >= NEEDED


@functools.cache
def trained() -> dict[str, Trained]:
    """Of every model trained, by the program's name."""
    return {name: Trained(**row) for name, row in json.loads((DATA / "trained.json").read_text()).items()}


def empty_model(program: HighLevel) -> ToyTransformer:
    """Of the size that all of them have, without norms; its weights are random."""
    config = ToyConfig(
        vocab_size=max(program.n_tokens, program.n_answers),
        n_positions=program.length,
        d_model=N_HEADS * D_HEAD,
        n_layers=program.n_layers,
        n_heads=N_HEADS,
        d_head=D_HEAD,
        d_mlp=D_MLP,
        no_norm=True,
    )
    model: ToyTransformer = ToyTransformer(config).eval()
    return model


def model_of(program: HighLevel) -> ToyTransformer:
    model = empty_model(program)
    stored = load_file(DATA / f"{program.name}.safetensors")
    model.load_state_dict({name: value.float() for name, value in stored.items()})
    return model


def true_edges(program: HighLevel, graph: Graph) -> BoolMatrix:
    """[senders, receivers]: every q, k and v edge of a head that hears a sender counts, as the truth is known of heads
    alone."""
    return mask_of(graph, program.edges)


def mask_of(graph: Graph, edges: Set[tuple[str, str]]) -> BoolMatrix:
    """Every q, k and v edge, or the one there is, from each sender to each node: [senders, receivers]."""
    mask = np.zeros_like(graph.legal)
    for sender, hearer in edges:
        mask[graph.sender_index(sender), graph.receivers_of(hearer)] = True
    return mask


def pairs_of(program: HighLevel, seed: int = 0) -> list[Pair]:
    """Prompts with another answer in the corrupt one."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (program.draw(20 * N_PAIRS, generator) for _ in range(2))
    right, wrong = program.answers(clean), program.answers(corrupt)
    rows = (right != wrong).nonzero().flatten()[:N_PAIRS].tolist()
    return [
        Pair(tuple(clean[i].tolist()), tuple(corrupt[i].tolist()), ((int(right[i]),),), ((int(wrong[i]),),), str(i))
        for i in rows
    ]
