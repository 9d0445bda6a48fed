"""A challenge job: a stored circuit in many settings, the circuits that the same search finds there, and controls.

Settings are those of `acdc.challenge_settings`. Each is a job of its own kind, run one after the other on the model at
hand; after each of them the run can be stopped and gone on with. One that cannot be had (a metric that needs wrong
answers, say) is told as skipped, never as passed.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from acdc.challenge import FEWEST_SEARCHES, SURVIVES, Challenge, Control, NotVaried, Survivor, Tried, survivors
from acdc.challenge_settings import N_RANDOM, RANDOM, ControlSetting, Variation, controls_of, not_varied, settings_of
from acdc.circuit import Circuit, Selected
from acdc.errors import AcdcError, Cancelled, SpecError, TaskError, is_out_of_memory
from acdc.evaluation.bootstrap import units_of
from acdc.evaluation.curve import Judge, scale_on
from acdc.evaluation.groups import MIN_PROMPTS, group_figures
from acdc.evaluation.judging import Plan, judge
from acdc.evaluation.measuring import Ledger
from acdc.evaluation.memory import key_of
from acdc.evaluation.random_circuits import random_circuits
from acdc.evaluation.split_half import overlap
from acdc.from_spec import (
    job_of,
    provenance_of,
    require_the_same_graph,
    require_the_same_weights,
    search_of,
    setting_of,
)
from acdc.graph import BoolMatrix, Graph
from acdc.models.loading import Loaded
from acdc.plain import from_plain
from acdc.progress import Checkpoint, Part, Progress
from acdc.report import GroupFigures, Point
from acdc.result import Result
from acdc.selection import RULES, Kept, rank
from acdc.setting import Setting
from acdc.spec import ChallengeSpec, DiscoverSpec, MeasuredSpec
from acdc.tasks.prompts import Pair, PromptSet

WITHHELD = "m(M) - m(empty) is too small to divide by"


def challenge(loaded: Loaded, spec: ChallengeSpec, progress: Progress, source: Circuit) -> list[Result]:
    """The table of settings, and what survived as a circuit of its own. Raises AcdcError, Cancelled."""
    begin = time.monotonic()
    require_the_same_weights(loaded, source)
    run = _Run(loaded, spec, progress, source)
    settings = settings_of(spec, run.behind, source.selected.rule)
    controls = controls_of(spec, run.behind, source.selected.rule)
    run.own_key, run.total = settings[0].search_key, len(settings) + len(controls) + 1
    for variation in settings[run.n_settings :]:
        run.try_setting(variation)
    if spec.controls:
        for control in controls[len(run.controls) :]:
            run.try_control(control)
        run.try_random()
    result = run.result()
    results = [Result("challenge", data={"challenge": result.to_dict()})]
    core = run.core()
    if core is not None:
        results.append(_core(run, core, time.monotonic() - begin))
    return results


@dataclass(frozen=True, eq=False)
class _Searched:
    """A search that was made. first_in: the setting that it was made in; others may have the same one. mask: of the
    circuit that it found, packed."""

    first_in: str
    selected: Selected
    mask: npt.NDArray[np.uint8]


@dataclass
class _Run:
    """What is known so far. searched: by their keys. own_key: of the search in the circuit's own setting, if one is
    made. key: which of a search's results the circuit is."""

    loaded: Loaded
    spec: ChallengeSpec
    progress: Progress
    source: Circuit
    tried: list[Tried] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    searched: dict[str, _Searched] = field(default_factory=dict)
    own_key: str | None = None
    key: str | None = None
    total: int = 0

    def __post_init__(self) -> None:
        self.behind: MeasuredSpec = job_of(self.source)
        self.source_key = key_of(self.source.kept).hex()
        saved = self.progress.resume()
        if saved is not None and saved.facts.get("source") == self.source_key:
            facts = saved.facts
            self.tried = [from_plain(Tried, one) for one in facts["tried"]]  # type: ignore[attr-defined]
            self.controls = [from_plain(Control, one) for one in facts["controls"]]  # type: ignore[attr-defined]
            self.key = facts["key"]  # type: ignore[assignment]
            self.searched = {
                key: _Searched(first_in, from_plain(Selected, selected), saved.arrays[key].astype(np.uint8))
                for key, first_in, selected in facts["searched"]  # type: ignore[attr-defined]
            }

    @property
    def n_settings(self) -> int:
        """That are done: groups are seen within the circuit's own."""
        return sum(one.kind != "group" for one in self.tried)

    def save(self) -> None:
        arrays = {key: one.mask for key, one in self.searched.items()}
        facts = {
            "tried": [asdict(one) for one in self.tried],
            "controls": [asdict(one) for one in self.controls],
            "searched": [(key, one.first_in, asdict(one.selected)) for key, one in self.searched.items()],
            "key": self.key,
            "source": self.source_key,
        }
        self.progress.save(Checkpoint(self.n_settings + len(self.controls), facts, arrays))

    # -- settings ------------------------------------------------------------------------------------------------------

    def try_setting(self, variation: Variation) -> None:
        inner = self._begin(variation.name)
        try:
            found = self._measured(variation, inner)
        except (AcdcError, RuntimeError, MemoryError) as error:
            why = _why(error)
            if variation.kind == "own":
                raise  # without it there is nothing to compare with
            found = [Tried(variation.name, variation.kind, skipped=why, factor=variation.factor)]
        self.tried += found
        self.save()

    def _measured(self, variation: Variation, inner: Progress) -> list[Tried]:
        if variation.skipped:
            raise SpecError(variation.skipped)
        circuit, again, shares_with = self._circuit(variation), None, ""
        if variation.rule is not None and np.array_equal(circuit.mask, self.source.kept):
            raise SpecError("it cuts the same circuit from the same scores")  # as where none is below zero
        setting = setting_of(self.loaded, variation.spec, inner, change=self._changed(variation), circuit=self.source)
        graph = setting.t.graph
        require_the_same_graph(self.loaded, graph, self.source)
        if variation.searches:
            again, first_in = self._found_in(variation, setting, inner)
            shares_with = first_in if first_in != variation.name else ""
        judging, points = _judged(setting, variation.spec, [circuit, *([again] if again else [])], inner)
        tried = Tried(
            variation.name,
            variation.kind,
            f=points[0].f,
            kl_share=points[0].kl_share,
            accuracy=points[0].accuracy,
            n_examples=len(setting.held_out.pairs),
            found_edges=again.selected.connected if again else None,
            jaccard=overlap(again.mask, self.source.kept)[0] if again else None,
            found_f=points[1].f if again else None,
            skipped="" if points[0].f is not None else WITHHELD,
            factor=variation.factor,
            shares_search_with=shares_with,
        )
        if variation.kind != "own" or "groups" not in self.spec.vary:
            return [tried]
        groups = group_figures(judging, circuit, variation.spec.seed)
        return [tried, *map(_of_group, groups)]

    def _changed(self, variation: Variation) -> Callable[[PromptSet], PromptSet] | None:
        if variation.resample is not None:
            return functools.partial(drawn_again, seed=variation.resample)
        if variation.factor == "prompts":
            return functools.partial(split_as, held_out=self.source.provenance.task.groups_held_out)
        return None

    def _circuit(self, variation: Variation) -> Kept:
        source = self.source
        if variation.rule is None:
            return Kept(source.kept, source.selected)
        return rank(source.graph, source.scores, source.tested, variation.rule).select(source.selected.asked_for)

    def _found_in(self, variation: Variation, setting: Setting, inner: Progress) -> tuple[Kept, str]:
        """The circuit that the search finds there, and in which setting that search was made."""
        key = variation.search_key
        assert key is not None
        if key not in self.searched:
            found = self._search(setting, variation.spec, inner)
            self.searched[key] = _Searched(variation.name, found.selected, np.packbits(found.mask))
        one = self.searched[key]
        return Kept(self._unpacked(one), one.selected), one.first_in

    def _unpacked(self, one: _Searched) -> BoolMatrix:
        kept = self.source.kept
        return np.unpackbits(one.mask, count=kept.size).reshape(kept.shape).astype(bool)

    def _search(self, setting: Setting, spec: MeasuredSpec, inner: Progress) -> Kept:
        """The circuit of the same size and rule that the search finds there."""
        assert isinstance(spec, DiscoverSpec)
        results = search_of(setting, spec, inner)
        graph, wanted = setting.t.graph, self.source.selected
        if wanted.rule in RULES:
            found = next(one for one in results if one.is_ranking)
            return rank(graph, found.scores, found.tested, wanted.rule).select(wanted.asked_for)
        kept = {one.key: Kept.of(graph, one.kept, wanted.rule) for one in results if one.kept is not None}
        if self.key not in kept:  # in the circuit's own setting, which is the first: which of several it is
            self.key = max(kept, key=lambda key: overlap(kept[key].mask, self.source.kept)[0])
        return kept[self.key]

    # -- controls ------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def own(self) -> Setting:
        """Made when controls or a core are first measured in it, and held from then on: not beside the settings."""
        return setting_of(self.loaded, self.behind, self._begin("the circuit's own setting"), circuit=self.source)

    def try_control(self, control: ControlSetting) -> None:
        own, inner = self.own, self._begin(control.name)
        try:
            loaded = self.loaded
            if control.changes == "weights":
                loaded = replace(loaded, model=with_random_weights(loaded.model, self.behind.seed))
            change = answers_shuffled if control.changes == "answers" else None
            setting = setting_of(loaded, control.spec, inner, change=change, circuit=self.source)
            require_the_same_graph(loaded, setting.t.graph, self.source)
            found = self._search(setting, control.spec, inner)
            _, (point,) = _judged(own, self.behind, [found], inner)
            self.controls.append(self._control(control.name, [found], [point]))
        except (AcdcError, RuntimeError, MemoryError) as error:
            self.controls.append(Control(control.name, skipped=_why(error)))
        self.save()

    def try_random(self) -> None:
        if not self.source.kept.any():
            return
        own, inner = self.own, self._begin(RANDOM)
        rng = np.random.default_rng(self.behind.seed)
        graph = self.source.graph
        drawn = random_circuits(graph, graph.connected(self.source.kept), N_RANDOM, rng)
        masks = [Kept.of(graph, mask, "random") for mask in drawn]
        _, points = _judged(own, self.behind, masks, inner)
        self.controls.append(self._control(RANDOM, masks, points))

    def _control(self, name: str, circuits: Sequence[Kept], points: Sequence[Point]) -> Control:
        told = any(point.f is not None for point in points)
        return Control(
            name,
            f=tuple(point.f for point in points),
            edges=tuple(one.selected.connected for one in circuits),
            jaccard=float(np.mean([overlap(one.mask, self.source.kept)[0] for one in circuits])),
            skipped="" if told else WITHHELD,
        )

    def _begin(self, name: str) -> Progress:
        done = self.n_settings + len(self.controls)
        return Part(self.progress, f"{min(done + 1, self.total)} of {self.total}, {name}")

    # -- what survived -------------------------------------------------------------------------------------------------

    @property
    def others(self) -> list[_Searched]:
        """Without the search in the circuit's own setting: that it finds the same there is no survival."""
        return [one for key, one in self.searched.items() if key != self.own_key]

    def shares(self) -> npt.NDArray[np.float64]:
        """Of the searches that found each edge: [senders, receivers]."""
        masks = [self._unpacked(one) for one in self.others]
        shares: npt.NDArray[np.float64] = np.stack(masks).mean(0, dtype=np.float64)
        return shares

    def core(self) -> Kept | None:
        if len(self.others) < FEWEST_SEARCHES:
            return None
        core = Kept.of(self.source.graph, self.source.kept & (self.shares() >= SURVIVES), "core")
        return core if core.mask.any() else None

    def result(self) -> Challenge:
        graph, core = self.source.graph, self.core()
        edges: tuple[Survivor, ...] = ()
        if self.others:
            names = graph.names_of(self.source.kept)
            edges = survivors(names, graph.in_order(self.shares())[graph.in_order(self.source.kept)].tolist())
        return Challenge(
            n_edges=self.source.n_edges,
            tried=tuple(self.tried),
            controls=tuple(self.controls),
            edges=edges,
            n_searches=len(self.others),
            core_edges=core.selected.connected if core else 0,
            not_varied=self.not_varied(),
        )

    def not_varied(self) -> tuple[NotVaried, ...]:
        left_out = not_varied(self.spec, self.behind, self.source.selected.rule)
        if "groups" in self.spec.vary and not any(one.kind == "group" for one in self.tried):
            left_out.append(NotVaried("groups", f"no group has {MIN_PROMPTS} or more held-out prompts"))
        return tuple(left_out)


def _of_group(g: GroupFigures) -> Tried:
    return Tried(
        f"group {g.group}",
        "group",
        g.f,
        g.kl_share,
        g.accuracy,
        g.n_examples,
        skipped="" if g.f is not None else WITHHELD,
        factor="groups",
    )


def _why(error: Exception) -> str:
    """Why a setting could not be had. Raises what is no such reason: a cancelled run, or a bug."""
    if isinstance(error, AcdcError) and not isinstance(error, Cancelled):
        return error.message
    if is_out_of_memory(error):
        return "the device has too little memory for it beside the circuit's own setting"
    raise error


def split_as(prompts: PromptSet, held_out: Sequence[str]) -> PromptSet:
    """The same prompts, those of these groups held out and the others searched, whatever the new seed would have done:
    else the circuit would be measured on templates that it was found on. Raises TaskError where either is empty."""
    pairs = (*prompts.search, *prompts.held_out)
    sides = [tuple(pair for pair in pairs if (pair.group in held_out) == wanted) for wanted in (False, True)]
    if not all(sides):
        raise TaskError("the new prompts are of other groups than the circuit's own")
    return replace(prompts, search=sides[0], held_out=sides[1])


def drawn_again(prompts: PromptSet, seed: int) -> PromptSet:
    """Both splits drawn with replacement, groups where there are enough of them."""

    def draw(pairs: tuple[Pair, ...], salt: int) -> tuple[Pair, ...]:
        units = units_of([pair.group for pair in pairs])
        counts = units.draw(1, seed * 2 + salt)[0][units.member_of]
        return tuple(pair for pair, n in zip(pairs, counts, strict=True) for _ in range(n))

    return replace(prompts, search=draw(prompts.search, 0), held_out=draw(prompts.held_out, 1))


def answers_shuffled(prompts: PromptSet) -> PromptSet:
    """Every prompt with the answers of another, the next one that shares none with it, right or wrong: the metric asks
    for what the prompt does not say. Raises TaskError where there is none."""

    def shift(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        return tuple(_with_answers_of(pair, (*pairs[i + 1 :], *pairs[:i])) for i, pair in enumerate(pairs))

    return replace(prompts, search=shift(prompts.search), held_out=shift(prompts.held_out))


def _with_answers_of(pair: Pair, others: Sequence[Pair]) -> Pair:
    own = {*pair.answers, *pair.wrong}
    for other in others:
        if own.isdisjoint((*other.answers, *other.wrong)):
            return replace(pair, answers=other.answers, wrong=other.wrong)
    raise TaskError("the task's prompts share their answers, so none can be given another's")


def with_random_weights(model: Any, seed: int) -> Any:
    """A new model of the same configuration, as it is before any training; the given one is left alone."""
    place = next(model.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(copy.deepcopy(model.config))
    return fresh.to(device=place.device, dtype=place.dtype).eval().requires_grad_(False)


def _judged(
    setting: Setting, spec: MeasuredSpec, circuits: Sequence[Kept], inner: Progress
) -> tuple[Judge, list[Point]]:
    """Each circuit's held-out point, and what measured them."""
    graph: Graph = setting.t.graph
    inner.phase("held-out prompts", 2 + len(circuits))
    ledger = Ledger(setting.held_out.split(setting.t, spec.metric), inner)
    judging = Judge(graph, {"held_out": ledger}, {"held_out": scale_on(ledger, graph, spec.seed)})
    shares = [one.selected.asked_for / graph.n_edges for one in circuits]
    return judging, judging.points("held_out", circuits, shares, done_before=2)


def _core(run: _Run, core: Kept, wall_time_s: float) -> Result:
    """What survived, judged in the circuit's own setting."""
    source, behind, own = run.source, run.behind, run.own
    judgement = judge(
        source.graph,
        source.scores.copy(),
        source.tested.copy(),
        search=own.search.split(own.t, behind.metric),
        held_out=own.held_out.split(own.t, behind.metric),
        plan=Plan(behind.evaluation.grid, rules=(), seed=behind.seed),
        progress=Part(run.progress, "the surviving core"),
        kept=core,
        why_no_examples="a challenge does not resample for it; its edges survived what the challenge says",
    )
    choices = source.provenance.choices
    note = f"the edges that survive in at least {SURVIVES:.0%} of {len(run.others)} searches of a challenge"
    provenance = provenance_of(
        own, behind, choices.method, dict(choices.parameters), choices.objective, wall_time_s, None, [note]
    )
    circuit = Circuit(
        graph=source.graph,
        scores=source.scores.copy(),
        tested=source.tested.copy(),
        kept=core.mask,
        selected=core.selected,
        provenance=provenance,
        report=judgement.report,
    )
    return Result("core", circuit)
