"""Search methods: one class each, whose fields are the keyword arguments of the method's function."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from acdc.errors import Fault
from acdc.spec.contradictions import moved_into
from acdc.spec.forms import Frozen, MetricName, Rule, as_tuple, in_a_word, one_of, with_name
from acdc.spec.sizes import Count, Part

# What attribution differentiates. Of several objectives the scores are added, each divided by the sum of its sizes.
_Metrics = Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=5)]
Objectives = Annotated[_Metrics, BeforeValidator(as_tuple, json_schema_input_type=MetricName | _Metrics)]


class Method(Frozen):
    """What every method has. Its traits are the same whatever its parameters are.

    gives_examples: it gives the scores of every prompt as well. splits_by_role: edges can be split by position role.
    takes_gradient: of the objective, so that it must have one. instead_for_kl: for one that takes it at the clean run,
    where KL has no slope, the method to use there. own_objective: what it improves unless told otherwise, in place of
    the job's metric.
    """

    model_config = ConfigDict(json_schema_extra=with_name)

    gives_examples: ClassVar[bool] = False
    splits_by_role: ClassVar[bool] = False
    takes_gradient: ClassVar[bool] = True
    instead_for_kl: ClassVar[str | None] = None
    own_objective: ClassVar[MetricName | None] = None

    def contradictions(self, n_prompts: int | None) -> Iterator[Fault]:
        """Its own choices that are not to be had together; places count from the method. n_prompts: searched on, None
        where it is not known."""
        yield from ()


class Eap(Method):
    """Edge attribution patching: gradient times activation difference on every edge."""

    gives_examples = True
    splits_by_role = True
    instead_for_kl = "eap-ig-inputs"

    name: Literal["eap"] = "eap"
    objective: Objectives | None = Field(default=None, description="by default the job's metric")


class EapIgInputs(Method):
    """EAP with the gradient integrated along the embeddings' path from corrupt to clean."""

    gives_examples = True
    splits_by_role = True

    name: Literal["eap-ig-inputs"] = "eap-ig-inputs"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class EapIgActivations(Method):
    """EAP with the gradient integrated along the path of every node's own output."""

    gives_examples = True
    splits_by_role = True

    name: Literal["eap-ig-activations"] = "eap-ig-activations"
    steps: int = Field(default=5, ge=1, le=1000)
    objective: Objectives | None = None


class EapIgQk(Method):
    """EAP-IG with attention computed anew for edges into queries and keys, where sharp attention hides gradients."""

    gives_examples = True

    name: Literal["eap-ig-qk"] = "eap-ig-qk"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class MaskIg(Method):
    """Gradients integrated over the mask itself, every edge faded in together from the empty circuit."""

    gives_examples = True
    splits_by_role = True

    name: Literal["mask-ig"] = "mask-ig"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class NodeAp(Method):
    """Node attribution patching: an edge gets the smaller score of its two nodes."""

    instead_for_kl = "node-ap-ig"

    name: Literal["node-ap"] = "node-ap"
    objective: Objectives | None = None


class NodeApIg(Method):
    """Node attribution patching with the gradient integrated along the embeddings' path."""

    name: Literal["node-ap-ig"] = "node-ap-ig"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class Relp(Method):
    """Relevance patching: attribution with layer-wise relevance propagation in place of the gradient."""

    gives_examples = True
    splits_by_role = True
    instead_for_kl = "eap-ig-inputs"

    name: Literal["relp"] = "relp"
    attention: Literal["gradient", "frozen"] = Field(
        default="gradient", description="frozen: the pattern is a constant, so edges into queries and keys get nothing"
    )
    objective: Objectives | None = None


class Gim(Method):
    """Attribution with gradients that see past the self-repair of attention (gradient interaction modifications)."""

    gives_examples = True
    splits_by_role = True
    instead_for_kl = "eap-ig-inputs"

    name: Literal["gim"] = "gim"
    temperature: float = Field(default=2.0, ge=1, le=100, description="at which the softmax's gradient is taken")
    objective: Objectives | None = None


class InformationFlowRoutes(Method):
    """How near what a sender writes is to what a receiver reads; no metric, no ablation, no gradient."""

    takes_gradient = False

    name: Literal["information-flow-routes"] = "information-flow-routes"


class EdgePruning(Method):
    """A mask for every edge, trained until as many are cut as wanted."""

    splits_by_role = True
    own_objective = "kl_divergence"

    name: Literal["edge-pruning"] = "edge-pruning"
    edges: Part = Field(
        default=0.02, description="to leave open: a number of edges (100; 1 is one edge), or a share of them (0.01)"
    )
    steps: int = Field(default=1000, ge=1, le=100_000)
    rate: float = Field(default=0.1, gt=0, le=10, description="Adam's learning rate of the masks")
    penalty_rate: float = Field(default=0.1, gt=0, le=10, description="that of the penalty on too many open edges")
    warm_start: float | None = Field(
        default=None, gt=0, le=1, description="train only this share of the edges, the largest by mask-ig"
    )
    mask_seed: int = Field(default=0, ge=0, lt=2**63, description="of the masks drawn in every step")
    objective: MetricName | None = Field(default=None, description="kl_divergence by default")

    def contradictions(self, n_prompts: int | None) -> Iterator[Fault]:
        if self.warm_start is not None and self.warm_start < self.edges < 1:
            yield Fault(
                "edges",
                f"asks for {self.edges:g} of the edges and `warm_start` leaves {self.warm_start:g} of them: lower "
                "`edges` or raise `warm_start`",
            )


class NestedPruning(Method):
    """A ranking trained so that its circuits are faithful at every size at once."""

    splits_by_role = True

    name: Literal["nested-pruning"] = "nested-pruning"
    steps: int = Field(default=300, ge=1, le=100_000, description="each runs one circuit on a few prompts")
    rate: float = Field(default=0.05, gt=0, le=10, description="Adam's learning rate, of logarithms of sizes")
    kl_weight: float = Field(default=1.0, ge=0, le=100, description="of KL, beside the squared error of the objective")
    examples: int = Field(default=8, ge=1, le=10_000, description="prompts of a step, at most one batch")
    draw_seed: int = Field(default=0, ge=0, lt=2**63, description="of the sizes and prompts drawn")
    objective: MetricName | None = Field(default=None, description="by default the job's metric")


class Exact(Method):
    """Every edge alone, cut from the full graph."""

    takes_gradient = False

    name: Literal["exact"] = "exact"
    receivers: int | None = Field(
        default=None, ge=1, description="score only the edges into so many receivers, drawn at random; all by default"
    )
    receiver_seed: int = Field(default=0, ge=0, lt=2**63, description="of the receivers drawn")
    objective: MetricName | None = None


_Rankings = (
    Eap
    | EapIgInputs
    | EapIgActivations
    | EapIgQk
    | MaskIg
    | NodeAp
    | NodeApIg
    | Relp
    | Gim
    | InformationFlowRoutes
    | EdgePruning
    | NestedPruning
    | Exact
)
Ranking = Annotated[_Rankings, Field(discriminator="name")]


def _by_name(methods: Any) -> dict[str, type[Method]]:
    """The classes of a union, by what specs call them."""
    return {spec.model_fields["name"].default: spec for spec in get_args(methods)}


_RankingName = Annotated[str, WithJsonSchema(one_of(_by_name(_Rankings)))]


class Ensemble(Method):
    """The mean rank of edges over several methods, if wanted without edges whose sign depends on the prompts drawn."""

    name: Literal["ensemble"] = "ensemble"
    methods: tuple[Annotated[Ranking, in_a_word("method", _RankingName | Ranking)], ...] = Field(
        default=(EapIgInputs(), MaskIg(), Gim()),
        min_length=1,
        max_length=10,
        description="each with its own parameters; all search by the ensemble's objective",
    )
    ranks: Rule = Field(
        default="signed",
        description="signed: by size with the score's sign, so methods that disagree cancel; absolute: by size alone",
    )
    consistency: float | None = Field(
        default=None,
        gt=0.5,
        le=1,
        description="an edge counts only where its sign is the same in this share of resamples of the prompts",
    )
    resample_seed: int = Field(default=0, ge=0, lt=2**63, description="of these resamples")
    objective: Objectives | None = None

    def contradictions(self, n_prompts: int | None) -> Iterator[Fault]:
        for number, part in enumerate(self.methods):
            where = f"methods.{number}"
            yield from moved_into(where, part.contradictions(n_prompts))
            if getattr(part, "objective", None) is not None:
                yield Fault(f"{where}.objective", "the methods of an ensemble share its `objective`: give it there")
            if isinstance(part, Exact) and part.receivers is not None:
                yield Fault(
                    f"{where}.receivers",
                    "`exact` of some `receivers` leaves edges without a rank: an ensemble needs one of each",
                )
            if self.consistency is not None and not part.gives_examples:
                yield Fault(where, f"`consistency` needs scores of every prompt, which {part.name} does not give")


_Threshold = float | Literal["Infinity", "-Infinity"]
_Thresholds = Annotated[tuple[_Threshold, ...], Field(max_length=100)]


class Acdc(Method):
    """Greedy edge pruning from the output to the input (Conmy et al. 2023), decision for decision."""

    splits_by_role = True
    takes_gradient = False
    own_objective = "kl_divergence"

    name: Literal["acdc"] = "acdc"
    thresholds: tuple[float, ...] = Field(default=(0.01,), max_length=100)
    edges: Count | None = Field(
        default=None, description="instead of thresholds: the one that keeps about so many edges, bisected"
    )
    rule: Rule = "signed"
    objective: MetricName | None = Field(default=None, description="kl_divergence by default")
    sender_order: Literal["reverse", "normal", "random"] = Field(
        default="reverse", description="in which a receiver's senders are tested; reverse is late to early"
    )
    order_seed: int = Field(default=0, ge=0, lt=2**63, description="of a random order")
    warm_start: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="hierarchical search: test only this share of the edges, the largest by eap-ig-inputs",
    )
    stages: tuple[Annotated[int, Field(ge=8)], ...] = Field(
        default=(),
        max_length=10,
        description="staged search: numbers of prompts (8 or more) to decide on first, on more only where it is open",
    )
    validation: int = Field(
        default=0,
        ge=0,
        description="prompts not searched on: of several thresholds the one with the smallest KL on them comes first",
    )

    @field_validator("thresholds", mode="before", json_schema_input_type=_Threshold | _Thresholds)
    @classmethod
    def _one_is_enough(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float | str) else value

    @field_validator("thresholds")
    @classmethod
    def _no_nan(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(threshold != threshold for threshold in value):
            raise ValueError("a threshold is not a number")
        if len(value) > 1 and not all(0 < threshold < math.inf for threshold in value):
            raise ValueError(
                "over several thresholds an edge's score is the largest it survives: give finite ones above 0"
            )
        return tuple(sorted(set(value), reverse=True))

    @field_validator("stages")
    @classmethod
    def _stages_grow(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="before")
    @classmethod
    def _edges_replace_the_default_threshold(cls, data: object) -> object:
        if isinstance(data, Mapping) and data.get("edges") is not None:
            return {"thresholds": (), **data}
        return data

    def contradictions(self, n_prompts: int | None) -> Iterator[Fault]:
        if (self.edges is None) == (not self.thresholds):
            yield Fault("edges", "give either `thresholds`, or `edges`: the number of edges to bisect a threshold for")
        if self.validation and (self.edges is not None or len(self.thresholds) < 2):
            yield Fault("validation", "it chooses among several thresholds: give more than one, and no `edges`")
        if self.validation and n_prompts is not None and self.validation >= n_prompts:
            yield Fault(
                "validation",
                f"sets {self.validation:,} prompts aside, and the search has {n_prompts:,}: give fewer, or more "
                "`task.prompts`",
            )
        if self.objective == "accuracy" and self.warm_start is not None:
            yield Fault("warm_start", "it needs the objective's gradient and accuracy has none; use logit_diff")
        if self.objective == "accuracy" and self.stages:
            yield Fault(
                "stages", "they judge an edge by its mean cost's error, and accuracy only jumps; use logit_diff"
            )

    @property
    def decides(self) -> bool:
        """Whether the circuit is the search's own decisions: nothing is ranked that another could be cut from."""
        return len(self.thresholds) < 2


_Methods = _Rankings | Ensemble | Acdc
MethodSpec = Annotated[_Methods, Field(discriminator="name")]
METHOD_SPECS = _by_name(_Methods)
MethodName = Annotated[str, WithJsonSchema(one_of(METHOD_SPECS))]
PER_EXAMPLE = tuple(name for name, spec in METHOD_SPECS.items() if spec.gives_examples)
BY_ROLE = tuple(name for name, spec in METHOD_SPECS.items() if spec.splits_by_role)
FOUND_WITH = (*METHOD_SPECS, "acdc-hierarchical", "acdc-staged", "acdc-hierarchical-staged", "hypothesis")
"""What a circuit may say that it was found with: a search that is no longer exact is not called by its method's name
alone."""


def methods_in(method: MethodSpec) -> tuple[MethodSpec, ...]:
    """The methods that are run: those of an ensemble, else itself."""
    return method.methods if isinstance(method, Ensemble) else (method,)


def objectives_of(method: MethodSpec, metric: MetricName) -> tuple[MetricName, ...]:
    own = None if isinstance(method, InformationFlowRoutes) else method.objective
    if own is None:
        return (method.own_objective or metric,)
    return (own,) if isinstance(own, str) else own
