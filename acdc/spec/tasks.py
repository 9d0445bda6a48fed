"""Which prompts a job runs on: a built-in task's, or the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from acdc.spec.forms import Frozen, as_tuple, one_of
from acdc.suggestions import did_you_mean
from acdc.tasks import TASKS
from acdc.tasks.pair_rows import refuse_taken_names

MAP_PROMPTS = 32
MOST_ROLES = 20  # that a graph is split by: it then has the edges of as many graphs


class Message(Frozen):
    role: Literal["system", "user", "assistant"]
    content: str


_Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class CustomPair(Frozen):
    """One row of the user's own prompts. `clean` and `corrupt` are text or chat messages; `corrupt` may be left out
    with `corruption: swap_within_group`, and for maps that need none: knockout, and causes with noise. `spans` names
    character ranges of the clean text."""

    clean: str | tuple[Message, ...]
    corrupt: str | tuple[Message, ...] | None = None
    answers: Annotated[_Texts, BeforeValidator(as_tuple, json_schema_input_type=str | _Texts)]
    wrong: Annotated[tuple[str, ...], BeforeValidator(as_tuple, json_schema_input_type=str | tuple[str, ...])] = ()
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


def rows_without_wrong(task: _Task) -> list[int]:
    """Numbers, from 1, of the rows that have no wrong answers and get none from another row."""
    if task.corruption == "swap_within_group":
        return []
    return [number for number, pair in enumerate(task.pairs or (), start=1) if not pair.wrong]


TaskName = Annotated[str, WithJsonSchema(one_of(sorted(TASKS)))]


def roles_of(task: _Task) -> Iterator[str]:
    """Every role that a prompt of it may have."""
    if task.pairs is None:
        yield from TASKS[task.name].roles
    for pair in task.pairs or ():
        yield from pair.spans
