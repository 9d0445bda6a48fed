"""Which settings a challenge tries: the job that found the circuit, with one choice changed, or a few of them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from acdc.challenge import NotVaried
from acdc.errors import SpecError
from acdc.selection import RULES
from acdc.spec import (
    AblationName,
    Acdc,
    ChallengeSpec,
    DiscoverSpec,
    EvaluateSpec,
    InformationFlowRoutes,
    MeasuredSpec,
    Varied,
    methods_in,
    parse_job,
)
from acdc.tasks import TASKS

BY_SIZE = ("signed", "absolute")  # rules that sort the edges; greedy grows a circuit
METRICS = ("logit_diff", "prob_diff", "answer_logprob", "kl_divergence")
OWN = "as it was found"
RANDOM = "matched random circuits"
N_RANDOM = 20
# Methods with a random part, and the parameter that it hangs on.
SEEDED = {"edge-pruning": "mask_seed", "nested-pruning": "draw_seed"}


@dataclass(frozen=True)
class Variation:
    """spec: of the circuit's job, changed. searches: whether the search is made again there. rule: the circuit is cut
    from its own scores by another one. resample: prompts are drawn again, with this seed. factor: the one choice that
    is changed. skipped: why it cannot be had, where that is known before."""

    name: str
    kind: str
    spec: MeasuredSpec
    searches: bool
    rule: str | None = None
    resample: int | None = None
    factor: str = ""
    skipped: str = ""

    @property
    def search_key(self) -> str | None:
        """Of the search that is made there, equal where it is the same one on the same prompts; None without one. A
        metric reaches a search only as its objective, and an ablation or a corruption not every method."""
        if not self.searches:
            return None
        assert isinstance(self.spec, DiscoverSpec)
        seen = self.spec.model_dump(mode="json", exclude={"metric"})
        seen["objectives"], seen["resample"] = self.spec.objectives, self.resample
        if all(isinstance(part, InformationFlowRoutes) for part in methods_in(self.spec.method)):
            del seen["objectives"], seen["ablation"], seen["task"]["corruption"]  # it looks at clean prompts alone
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Runs:
    """What a challenge takes, controls included. settings: prepared, and the circuit measured in them. searches: made,
    each once. found: circuits that searches found, measured in each setting that has one."""

    settings: int
    searches: int
    found: int


@dataclass(frozen=True)
class ControlSetting:
    """Where a circuit is searched that should not hold. changes: answers, weights or task."""

    name: str
    changes: str
    spec: MeasuredSpec


def settings_of(spec: ChallengeSpec, behind: MeasuredSpec, rule: str) -> list[Variation]:
    """behind: the circuit's own job; rule: by which it was selected. A circuit that no search made (a hypothesis, an
    edited one) is not searched again."""
    searches = can_search(spec, behind, rule)
    found = [Variation(OWN, "own", behind, searches)]
    for factor in get_args(Varied):
        if factor in spec.vary and not _why_not(factor, behind, rule, searches):
            changed = _one_at_a_time(factor, spec, behind, rule, searches)
            found += [replace(one, factor=factor) for one in changed]
    if spec.factorial:
        found += _factorial(spec, behind, searches)
    return found


def not_varied(spec: ChallengeSpec, behind: MeasuredSpec, rule: str) -> list[NotVaried]:
    """What `vary` asks for and this circuit does not have, as far as that is known before."""
    searches = can_search(spec, behind, rule)
    found = [NotVaried(factor, _why_not(factor, behind, rule, searches)) for factor in get_args(Varied)]
    return [one for one in found if one.factor in spec.vary and one.why]


def _why_not(factor: str, behind: MeasuredSpec, rule: str, searches: bool) -> str:
    """Why it cannot be varied; empty where it can."""
    match factor:
        case "corruption" if behind.ablation.kind != "resample":
            return f"under {behind.ablation.kind} ablation nothing is taken from corrupt prompts"
        case "corruption" if behind.task.pairs is not None:
            return "the prompts are the user's own and come with theirs"
        case "corruption" if len(_corruptions(behind)) == 1:
            return f"task {behind.task.name} has one only"
        case "rule" if rule not in RULES:
            return "the circuit was not cut from a ranking"
        case "prompts" if behind.task.pairs is not None:
            return "of the user's own prompts there are no others"
        case "seed" | "order" if not searches:
            return "the search is not made again"
        case "seed" if isinstance(behind, DiscoverSpec) and behind.method.name not in SEEDED:
            return f"the search of {behind.method.name} has no seed"
        case "order" if isinstance(behind, DiscoverSpec) and behind.method.name != "acdc":
            return f"{behind.method.name} does not go from sender to sender"
    return ""


def controls_of(spec: ChallengeSpec, behind: MeasuredSpec, rule: str) -> list[ControlSetting]:
    """Random circuits need none and come besides."""
    if not (spec.controls and can_search(spec, behind, rule)):
        return []
    other = next(name for name in ("country_capital", "greater_than") if name != behind.task.name)
    task = {"name": other, "prompts": behind.task.sizes[0], "held_out": behind.task.sizes[1]}
    return [
        ControlSetting("answers shuffled between prompts", "answers", behind),
        ControlSetting("model with random weights", "weights", behind),
        ControlSetting(f"circuit of another task, {other}", "task", _changed(behind, {"task": task})[0]),
    ]


def can_search(spec: ChallengeSpec, behind: MeasuredSpec, rule: str) -> bool:
    return spec.search and isinstance(behind, DiscoverSpec) and rule in (*RULES, "decisions")


def runs_of(spec: ChallengeSpec, behind: MeasuredSpec, rule: str) -> Runs:
    settings, n_controls = settings_of(spec, behind, rule), len(controls_of(spec, behind, rule))
    keys = [one.search_key for one in settings if one.searches]
    return Runs(len(settings) + n_controls, len(set(keys)) + n_controls, len(keys) + n_controls)


def _one_at_a_time(
    factor: str, spec: ChallengeSpec, behind: MeasuredSpec, rule: str, searches: bool
) -> Iterator[Variation]:
    """factor: one that can be varied. Groups are seen within the circuit's own setting."""
    match factor:
        case "ablation":
            for kind in get_args(AblationName):
                if kind != behind.ablation.kind:
                    yield _varied(f"ablation {kind}", "one", behind, {"ablation": {"kind": kind}}, searches)
        case "corruption":
            for corruption in _corruptions(behind)[1:]:
                yield _varied(
                    f"corruption {corruption}",
                    "one",
                    behind,
                    {"task": _task_with(behind, corruption=corruption)},
                    searches,
                )
        case "metric":
            for metric in METRICS:
                if metric != behind.metric:
                    yield _varied(f"metric {metric}", "one", behind, {"metric": metric}, searches)
        case "rule":
            for other in BY_SIZE:
                if other != rule:
                    yield Variation(f"rule {other}", "one", behind, False, rule=other)  # the search is the same
        case "prompts":
            for i in range(1, spec.seeds + 1):
                changes = {"task": _task_with(behind, seed=behind.task.seed + i)}
                yield _varied(f"other prompts, seed {behind.task.seed + i}", "one", behind, changes, searches)
        case "resample":
            for i in range(1, spec.resamples + 1):
                yield Variation(f"prompts drawn again, {i}", "one", behind, searches, resample=i)
        case "seed" if isinstance(behind, DiscoverSpec):
            name = SEEDED[behind.method.name]
            method = behind.model_dump(mode="json")["method"]
            for i in range(1, spec.seeds + 1):
                own = method[name] + i
                yield _varied(f"{name} {own}", "one", behind, {"method": {**method, name: own}}, searches)
        case "order" if isinstance(behind, DiscoverSpec) and isinstance(behind.method, Acdc):
            for order in ("reverse", "normal", "random"):
                if order != behind.method.sender_order:
                    method = {**behind.model_dump(mode="json")["method"], "sender_order": order}
                    yield _varied(f"sender order {order}", "one", behind, {"method": method}, searches)


def _factorial(spec: ChallengeSpec, behind: MeasuredSpec, searches: bool) -> Iterator[Variation]:
    """Ablation x corruption x metric (the circuit's own and KL), those with at least two choices changed. Corruptions
    differ under resample alone."""
    second = "kl_divergence" if behind.metric != "kl_divergence" else "logit_diff"
    kinds = get_args(AblationName) if "ablation" in spec.vary else (behind.ablation.kind,)
    corruptions = _corruptions(behind) if "corruption" in spec.vary else _corruptions(behind)[:1]
    metrics = (behind.metric, second) if "metric" in spec.vary else (behind.metric,)
    for kind, corruption, metric in itertools.product(kinds, corruptions, metrics):
        changes: dict[str, Any] = {}
        if kind != behind.ablation.kind:
            changes["ablation"] = {"kind": kind}
        if corruption != _corruptions(behind)[0]:
            if kind != "resample":
                continue
            changes["task"] = _task_with(behind, corruption=corruption)
        if metric != behind.metric:
            changes["metric"] = metric
        if len(changes) > 1:
            told = {"ablation": kind, "task": corruption, "metric": metric}
            yield _varied(", ".join(told[name] for name in changes), "factorial", behind, changes, searches)


def _varied(name: str, kind: str, behind: MeasuredSpec, changes: Mapping[str, Any], searches: bool) -> Variation:
    try:
        spec, searches_too = _changed(behind, changes)
    except SpecError as error:
        return Variation(name, kind, behind, False, skipped=error.message)
    return Variation(name, kind, spec, searches and searches_too)


def _changed(behind: MeasuredSpec, changes: Mapping[str, Any]) -> tuple[MeasuredSpec, bool]:
    """The job with fields changed, and whether its search can be made there: some methods cannot improve some metrics.
    Where it cannot, the search's own objective is written out, so that the circuit can still be measured."""
    data = behind.model_dump(mode="json")
    try:
        changed = parse_job({**data, **changes})
        assert isinstance(changed, DiscoverSpec | EvaluateSpec)
        return changed, True
    except SpecError:
        assert isinstance(behind, DiscoverSpec), "an evaluation has no search that could refuse"
        method = {**data["method"], "objective": list(behind.objectives)}
        changed = parse_job({**data, **changes, "method": method})
        assert isinstance(changed, DiscoverSpec)
        return changed, False


def _corruptions(behind: MeasuredSpec) -> tuple[str, ...]:
    """The job's own first. The user's own pairs come with theirs."""
    if behind.task.pairs is not None:
        return (behind.task.corruption or "given",)
    every = TASKS[behind.task.name].corruptions
    own = behind.task.corruption or every[0]
    return (own, *(name for name in every if name != own))


def _task_with(behind: MeasuredSpec, **changes: Any) -> dict[str, Any]:
    return {**behind.task.model_dump(mode="json"), **changes}
