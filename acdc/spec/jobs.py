"""The kinds of jobs: what each one asks for, and which of its choices go together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from acdc.errors import Fault
from acdc.graph import END, OTHER
from acdc.spec.choices import (
    Ablation,
    AblationName,
    Compute,
    Edit,
    EvaluationSpec,
    EveryRole,
    Extent,
    Hypothesis,
    Limits,
    Positions,
    Selection,
)
from acdc.spec.contradictions import moved_into, refuse
from acdc.spec.forms import (
    COMPARES_WITH_WRONG,
    Frozen,
    MetricName,
    NonEmpty,
    in_a_word,
    nameless,
    spell_infinity,
    written_out,
)
from acdc.spec.maps import Activations, Causes, Knockout, MapMetricName, MapName, MapSpec
from acdc.spec.methods import (
    BY_ROLE,
    Acdc,
    EapIgInputs,
    Ensemble,
    MethodName,
    MethodSpec,
    methods_in,
    objectives_of,
)
from acdc.spec.references import ModelRef
from acdc.spec.tasks import MapTaskSpec, TaskName, TaskSpec, roles_of, rows_without_wrong
from acdc.suggestions import did_you_mean

_ROWS_NAMED = 10  # in one message


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

    @field_validator("metric", check_fields=False)
    @classmethod
    def _rows_have_what_it_compares(cls, value: str, info: ValidationInfo) -> str:
        if info.context == REQUEST and (fault := _fault_of_rows(value, info.data.get("task"))):
            raise ValueError(fault)
        return value


def _fault_of_rows(metric: str, task: TaskSpec | MapTaskSpec | None) -> str | None:
    """Of a metric on custom pairs that have nothing to compare."""
    rows = rows_without_wrong(task) if task is not None and metric in COMPARES_WITH_WRONG else []
    if task is None or not rows:
        return None
    one = len(rows) == 1
    named = ", ".join(map(str, rows[:_ROWS_NAMED]))
    more = f" and {len(rows) - _ROWS_NAMED:,} more" if len(rows) > _ROWS_NAMED else ""
    return (
        f"{metric} compares right with wrong answers, and {'row' if one else 'rows'} {named}{more} of "
        f"{len(task.pairs or ()):,} {'has' if one else 'have'} none: give `wrong` there or leave "
        f"{'it' if one else 'them'} out; or ask for a metric that takes right answers alone, like answer_logprob or "
        "kl_divergence"
    )


class _Measured(_OnPrompts):
    """A job that builds a task's prompts and measures circuits on them."""

    task: Annotated[TaskSpec, in_a_word("task", TaskName | TaskSpec)] = Field(default_factory=TaskSpec)
    positions: Positions = Field(
        default="all",
        description="all: one mask for all tokens; roles: every edge falls apart into its parts at the tokens of each "
        "role that all prompts have (IO, S1, subject, end, …); or a list of such roles; tokens of no role are `other`",
    )
    split_position: bool = Field(
        default=False, description="the position embedding is a sender of its own; for models with learned positions"
    )
    metric: MetricName = Field(default="logit_diff", validate_default=True)
    ablation: Annotated[Ablation, in_a_word("ablation", AblationName | Ablation)] = Field(default_factory=Ablation)
    evaluation: Annotated[EvaluationSpec, in_a_word("evaluation", Extent | EvaluationSpec)] = Field(
        default_factory=EvaluationSpec
    )
    selection: Selection = Field(default_factory=Selection)

    @field_validator("positions")
    @classmethod
    def _roles_are_of_the_task(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        task = info.data.get("task")
        if isinstance(value, str) or task is None or info.context != REQUEST:
            return value
        known = tuple(dict.fromkeys((*roles_of(task), END, OTHER)))
        if unknown := [role for role in value if role not in known]:
            hints = "".join(dict.fromkeys(did_you_mean(role, (*known, *get_args(EveryRole))) for role in unknown))
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

    @field_validator("method", mode="before", json_schema_input_type=MethodName | MethodSpec | nameless(EapIgInputs))
    @classmethod
    def _word_or_parameters_of_the_default_are_enough(cls, value: object) -> object:
        return {"name": EapIgInputs().name, **value} if isinstance(value, Mapping) else written_out("method", value)

    @property
    def objectives(self) -> tuple[MetricName, ...]:
        """What the search improves: the method's own objective, else KL for those that decide edge by edge or train
        masks, and the metric for the others."""
        return objectives_of(self.method, self.metric)

    @field_validator("method")
    @classmethod
    def _choices_go_together(cls, method: MethodSpec, info: ValidationInfo) -> MethodSpec:
        """It is the last field: all others are known, but for those with faults of their own."""
        task, selection = info.data.get("task"), info.data.get("selection")
        faults = list(moved_into("method", method.contradictions(task.prompts if task else None)))
        objectives = objectives_of(method, info.data.get("metric", "logit_diff"))
        faults += _faults_of_combination(method, objectives, info.data.get("positions", "all"))
        if info.context == REQUEST and "metric" in info.data:
            others = dict.fromkeys(name for name in objectives if name != info.data["metric"])
            told = (_fault_of_rows(name, task) for name in others)
            faults += [Fault("method.objective", fault) for fault in told if fault]
        if selection is not None:
            faults += selection.contradictions()
            if isinstance(method, Acdc) and method.decides:
                # What a stored circuit was asked for can be read again.
                asked = ("size", "rule", "faithfulness") if info.context == REQUEST else ("faithfulness",)
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
        if positions != "all" and not part.splits_by_role:
            yield Fault(where, f"method {part.name!r} does not split edges by position; {', '.join(BY_ROLE)} do")
        if part.takes_gradient and "accuracy" in objectives:
            yield Fault(where, f"method {part.name!r} needs a gradient and accuracy has none; use logit_diff")
        if part.instead_for_kl is not None and "kl_divergence" in objectives:
            yield Fault(
                where,
                f"method {part.name!r} cannot use kl_divergence: its gradient at the clean run is zero; use "
                f"{part.instead_for_kl}",
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
            if info.context == REQUEST:  # what a stored circuit was asked for can be read again
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
    task: Annotated[MapTaskSpec, in_a_word("task", TaskName | MapTaskSpec)] = Field(default_factory=MapTaskSpec)
    map: MapSpec = Field(default_factory=Activations)
    metric: MapMetricName = Field(
        default="logit_diff",
        validate_default=True,
        description="answer_probability is the one of the paper on causal tracing",
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

    @field_validator("map", mode="before", json_schema_input_type=MapName | MapSpec | nameless(Activations))
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
REQUEST = {"is_request": True}  # the context of validation
