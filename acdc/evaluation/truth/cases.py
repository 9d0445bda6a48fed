"""All models whose circuit is known, each with its prompts and its truth."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from acdc.evaluation.truth import hand_wired, siit, tracr
from acdc.evaluation.truth.exhaustive import Truth
from acdc.evaluation.truth.high_level import HIGH_LEVEL, HighLevel
from acdc.graph import Graph
from acdc.models.architectures import wrap
from acdc.models.transformer import Transformer
from acdc.patching.ablation import ablation_of
from acdc.patching.batches import make_batches
from acdc.patching.circuits import Prompts, prepare
from acdc.tasks.prompts import Pair

BATCH_TOKENS, MEMORY_BYTES = 512, 2**30
FAMILIES = ("hand-wired", "gates", "tracr", "siit")


@dataclass(frozen=True)
class Case:
    """A model, its prompts, and its circuit under each ablation that it is known for.

    at_heads: the truth is known of heads, not of their q, k and v inputs apart. split_position: positions are a sender
    of their own in the graph that the truth is about.
    """

    name: str
    about: str
    ablations: tuple[str, ...]
    model: Callable[[], PreTrainedModel]
    pairs: Callable[[], list[Pair]]
    truth: Callable[[Graph, str], Truth]
    at_heads: bool = False
    split_position: bool = False

    @property
    def family(self) -> str:
        """What its name begins with."""
        return self.name.partition("/")[0]

    def transformer(self) -> Transformer:
        """The model for the executor, with the graph that the truth is about."""
        return wrap(self.model(), split_position=self.split_position)


def cases() -> list[Case]:
    return [*_hand_wired(), *_tracr(), *_siit()]


def prompts_of(case: Case, t: Transformer, ablation: str) -> list[Prompts]:
    """Its prompts, ready for masked forwards of its model. Means are over all positions alike."""
    batches = make_batches(t, case.pairs(), BATCH_TOKENS, MEMORY_BYTES)
    return prepare(t, batches, ablation_of(ablation, t, batches, mean_per_role=False))


def case_named(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


# -- hand-wired models and gates: their circuit is written beside them -------------------------------------------------


def _hand_wired() -> list[Case]:
    induction = {"resample": hand_wired.INDUCTION_RESAMPLE, "zero": hand_wired.INDUCTION_ZERO}
    two_hops = {"resample": hand_wired.TWO_HOPS_RESAMPLE, "zero": hand_wired.TWO_HOPS_ZERO}
    gate = {"resample": hand_wired.GATE_RESAMPLE, "zero": hand_wired.GATE_ZERO}
    pairs = hand_wired.gate_pairs
    rows = (
        ("induction", "what followed the token", hand_wired.induction_model, hand_wired.induction_pairs, induction),
        ("two-hops", "A B, B C, A: C", hand_wired.two_hop_model, hand_wired.two_hop_pairs, two_hops),
        ("or", "either input is on", functools.partial(hand_wired.gate_model, 0.5), pairs, gate),
        ("and", "both inputs are on", functools.partial(hand_wired.gate_model, 1.5), pairs, gate),
    )
    return [
        Case(
            f"gates/{name}" if edges is gate else f"hand-wired/{name}",
            about,
            tuple(edges),
            model,
            of,
            functools.partial(_by_names, edges),
        )
        for name, about, model, of, edges in rows
    ]


def _by_names(edges: Mapping[str, Sequence[str]], graph: Graph, ablation: str) -> Truth:
    return Truth.designed(graph.mask_of_edges(edges[ablation]))


# -- compiled programs: their circuit was found by cutting every edge --------------------------------------------------


def _tracr() -> list[Case]:
    return [
        Case(
            f"tracr/{program.name}",
            program.about,
            tracr.ABLATIONS,
            functools.partial(tracr.model_of, program),
            functools.partial(tracr.pairs_of, program),
            functools.partial(_stored, program.name),
            split_position=True,
        )
        for program in tracr.programs().values()
    ]


def _stored(name: str, graph: Graph, ablation: str) -> Truth:
    row = stored_truths()[name][ablation]
    return Truth(*(graph.mask_of_edges(row[kind]) for kind in ("true", "stand_ins", "counterweights")))


@functools.cache
def stored_truths() -> dict[str, dict[str, dict[str, list[str]]]]:
    """Of every compiled program under every ablation: the names of its edges of every kind."""
    found: dict[str, dict[str, dict[str, list[str]]]] = json.loads((tracr.DATA / "truths.json").read_text())
    return found


# -- trained models: their circuit is what they were trained to have ---------------------------------------------------


def _siit() -> list[Case]:
    return [
        Case(
            f"siit/{name}",
            HIGH_LEVEL[name].about,
            ("resample",),
            functools.partial(siit.model_of, HIGH_LEVEL[name]),
            functools.partial(siit.pairs_of, HIGH_LEVEL[name]),
            functools.partial(_trained, HIGH_LEVEL[name]),
            at_heads=True,
        )
        for name, model in siit.trained().items()
        if model.is_accepted
    ]


def _trained(program: HighLevel, graph: Graph, ablation: str) -> Truth:
    return Truth.designed(siit.true_edges(program, graph))
