"""What else a job chooses: ablation, evaluation, selection, positions, edits, compute and limits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from acdc.errors import Fault
from acdc.selection import GRID
from acdc.spec.forms import Frozen, NonEmpty, Rule
from acdc.spec.sizes import Size
from acdc.spec.tasks import MOST_ROLES

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
        "prompts, by `rule`, or without one by that of evaluation.rules which takes fewest edges; for rankings only",
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


EveryRole = Literal["all", "roles"]  # words that stand alone


def _in_words_of_positions(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """`IO,end` as a list. What is wrong is one fault, and not one for each way to write positions."""
    words = [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else []
    try:
        found = check(words if words and value not in get_args(EveryRole) else value)
    except ValidationError:
        raise ValueError(
            f"give `all`, `roles`, or 1 to {MOST_ROLES} names of roles, like IO,end; got {value!r:.80}"
        ) from None
    if isinstance(found, tuple) and (alone := [word for word in get_args(EveryRole) if word in found]):
        raise ValueError(f"`{alone[0]}` stands alone: write positions: {alone[0]}; got {value!r:.80}")
    return found


_Role = Annotated[NonEmpty, Field(json_schema_extra={"not": {"enum": list(get_args(EveryRole))}})]
_RolesWanted = Annotated[tuple[_Role, ...], Field(min_length=1, max_length=MOST_ROLES)]
_InWords = Annotated[str, Field(pattern=r"[^,\s]")]
Positions = Annotated[
    EveryRole | _RolesWanted,
    WrapValidator(_in_words_of_positions, json_schema_input_type=EveryRole | _InWords | _RolesWanted),
]


class Hypothesis(Frozen):
    """A circuit written by hand: nodes (every edge between two of them), edges, or both."""

    nodes: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_something(self) -> Hypothesis:
        if not self.nodes and not self.edges:
            raise ValueError('give `nodes` like ["9.9", "mlp0"], or `edges` like ["embed->mlp0"]')
        return self
