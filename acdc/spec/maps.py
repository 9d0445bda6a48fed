"""Patching maps: one class each, whose fields are the choices of the tracing function."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from acdc.spec.forms import Frozen, MetricName, NonEmpty, as_tuple, one_of, with_name

MapMetricName = Literal[MetricName, "answer_probability"]


StateName = Literal["residual_before", "residual_between", "residual_after", "attention", "mlp", "head", "q", "k", "v"]
RestoredState = Literal["residual_before", "residual_after", "attention", "mlp"]
PlacesName = Literal["role", "position", "from_end", "all"]
Direction = Literal["noising", "denoising"]
_RoleNames = Annotated[tuple[NonEmpty, ...], Field(min_length=1, max_length=1000)]
Roles = Annotated[_RoleNames, BeforeValidator(as_tuple, json_schema_input_type=NonEmpty | _RoleNames)]


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
        lambda value: () if value is None else as_tuple(value),
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
MapName = Annotated[str, WithJsonSchema(one_of(MAP_SPECS))]
