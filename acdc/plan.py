"""What a job will cost, before it runs: seconds, memory and disk, each with how it was reckoned. Torch-free.

The unit of work is a bare forward pass of one prompt; a backward pass counts as two of them, a masked forward as three.
Its floating point operations are 2 x parameters x tokens, the unembedding at the answer position only. Everything is an
order of magnitude with a stated uncertainty, and what depends on a model that nobody has fetched is said to be unknown.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from acdc.challenge_settings import N_RANDOM, runs_of
from acdc.evaluation.judging import Cost, n_evaluations
from acdc.evaluation.judging import Plan as EvaluationPlan
from acdc.graph import Graph, GraphShape
from acdc.map_cost import cells_of_map, forwards_of_map
from acdc.models.catalogue import Size, entry_for
from acdc.models.config_size import count_tables, read_config, size_of
from acdc.models.inventory import list_local
from acdc.patching.sizes import masked_streams, prepared_streams, trained_streams
from acdc.spec import (
    Acdc,
    ChallengeSpec,
    CustomPair,
    DiscoverSpec,
    EdgePruning,
    JobSpec,
    MapTaskSpec,
    MeasuredSpec,
    MethodSpec,
    ModelRef,
    NestedPruning,
    OnCircuit,
    PatchSpec,
    PromptsSpec,
    TaskSpec,
    TrySpec,
    methods_in,
    reference_of,
)
from acdc.tasks import TASKS

UNCERTAINTY = 3.0
"""The true figure lies within this factor of the plan's, both ways, where nothing is in doubt."""

BACKWARD = 2.0  # in forwards
MASKED = 3.0  # what a masked forward costs, in bare ones
EXACT_EDGE = 0.5  # forwards per edge: nothing before the receiver is computed again
NESTED_WARM_STEPS = 5  # of the attribution that nested pruning begins with
QK_ANEW = 0.07  # forwards per layer and query or key/value head: its attention anew for every sender before it
ACDC_EDGE = 0.08  # forwards per tested edge, as `make bench-exact` finds it
ACDC_TESTED = 0.4  # of the edges: those whose receiver still has a kept way to the output
DOUBTED_TESTS = (
    f"how many edges are tested: reckoned with {100 * ACDC_TESTED:g} % of all, about what a threshold of 0.01 leaves "
    "of ioi's; larger ones leave fewer. `acdc plan --measure` finds it out, in a minute or some"
)
BISECTION = 8  # searches until a threshold keeps about as many edges as were asked for
BUSY = 0.5  # load for each core, from which on a measured speed is doubted
EFFICIENCY = 0.5  # of matrix products' speed, reached by a whole forward pass
CHARACTERS_PER_TOKEN = 4.0
CONVERTED_BYTES = 4  # per parameter: what GGUF files are converted to is float32
CONVERTED_PER_S = 2e7  # parameters dequantised and written, taken as a slow machine's figure
READ_BYTES_PER_S = 5e8
START_S = 5.0  # the engine process: interpreter, torch, transformers
PROCESS_BYTES = 600 * 2**20  # the same, before any weights
RESIDUALS_PER_LAYER = 8  # streams that a gradient method keeps
DTYPE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
NUMBER_BYTES = 8  # of a map
ARRAYS_BYTES = 4 + 1 + 1  # scores, tested and kept, per cell of the score matrix


@dataclass(frozen=True)
class ModelFacts:
    """download_bytes, converts: what is still to be done before the model can be loaded. stored_bytes: its weights on
    disk once that is done. n_tables: 2 where embedding and unembedding are not one matrix."""

    size: Size
    download_bytes: int
    converts: bool
    stored_bytes: int
    n_tables: int = 1


@dataclass(frozen=True)
class Speed:
    """flops_per_s: of a forward pass."""

    flops_per_s: float
    source: str


@dataclass(frozen=True)
class Phase:
    """seconds: None where it cannot be known yet."""

    name: str
    seconds: float | None
    how: str


@dataclass(frozen=True)
class Need:
    """Bytes of memory or disk, None where it cannot be known yet."""

    n_bytes: int | None
    how: str


@dataclass(frozen=True)
class Plan:
    """flops: of the search and the evaluation, as reckoned. unknown: what the plan leaves out. doubts: what it reckons
    with and may be far off."""

    phases: tuple[Phase, ...]
    memory: Need
    disk: Need
    flops: float | None
    unknown: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def uncertainty(self) -> float | None:
        """The factor that the seconds are right within, both ways; None where something is in doubt."""
        return None if self.doubts else UNCERTAINTY

    @property
    def seconds(self) -> float | None:
        """All phases together; None while the search or the evaluation is unknown. An unknown download is left out."""
        needed = [phase.seconds for phase in self.phases if phase.name != "download"]
        if any(seconds is None for seconds in needed):
            return None
        return sum(phase.seconds or 0.0 for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "uncertainty": self.uncertainty}


def measure_speed(budget_s: float = 0.2) -> Speed:
    """Time float32 matrix products on all of this machine's CPUs at once for about `budget_s` seconds.

    The fastest on each counts: whatever else the machine is doing only makes them slower. They are so small that each
    is computed by one thread: one shared by several waits for the one that another program has put aside, always.
    """
    n_cpus = os.cpu_count() or 1
    with ThreadPoolExecutor(n_cpus) as threads:
        rate = sum(threads.map(_product_flops_per_s, [budget_s] * n_cpus))
    source = f"matrix products on this machine's CPU ({rate / 1e9:.0f} GFLOP/s, half of it reached)"
    return Speed(rate * EFFICIENCY, source)


def _product_flops_per_s(budget_s: float) -> float:
    """Of one thread. Many products a call, so that the threads do not wait for the interpreter."""
    n, n_at_once = 64, 64
    a = np.random.default_rng(0).standard_normal((n_at_once, n, n), dtype=np.float32)
    out = np.empty_like(a)
    fastest, end = math.inf, time.perf_counter() + budget_s
    while (begin := time.perf_counter()) < end or fastest == math.inf:
        np.matmul(a, a, out=out)
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * n**3 * n_at_once / fastest


def doubts_now() -> list[str]:
    """What the host's other work makes doubtful."""
    load, n_cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load <= BUSY * n_cpus:
        return []
    return [f"how much of this machine is free: its load is {load:.1f}, with {n_cpus} CPUs"]


def facts_of(reference: str, cached: Path | None = None) -> ModelFacts | None:
    """What is known of a model without fetching it: from the directory that holds it (`cached`, or that of a `path:`
    reference), else from the catalogue; else None."""
    ref = ModelRef.parse(reference)
    directory = reference_of(reference).place if ref.kind == "path" else cached
    if directory is not None:
        config = read_config(directory)
        size = size_of(config)
        if size is None:
            return None
        stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        return ModelFacts(size, 0, False, stored or size.n_parameters * CONVERTED_BYTES, count_tables(config))
    entry = entry_for(reference)
    if entry is None:
        return None
    return ModelFacts(entry.size, entry.download_mb * 10**6, True, entry.size.n_parameters * CONVERTED_BYTES)


def cached_directory(cache: Path, reference: str) -> Path | None:
    """Where the host's model cache holds what was once asked for by this reference; None where it does not."""
    held = (line.model for line in list_local(cache) if line.model.reference == reference)
    return next((Path(model.directory) for model in held), None)


def estimate(
    spec: JobSpec,
    facts: ModelFacts | None,
    speed: Speed,
    behind: PromptsSpec | None = None,
    doubts: Sequence[str] = (),
) -> Plan:
    """The cost of a job on a machine of that speed. behind: of a job on a circuit, the one that found it. doubts: of
    the machine."""
    measured = behind if isinstance(spec, OnCircuit) else spec
    assert measured is not None, "a job on a circuit has neither model nor prompts of its own"
    if facts is None:
        why = f"the size of {measured.model}: it is known once the model was fetched"
        later = "unknown until the model was fetched"
        phases = tuple(Phase(name, None, later) for name in ("download", "convert", "load", "search", "evaluate"))
        return Plan(phases, Need(None, later), Need(None, later), None, (why,))
    if not isinstance(measured, PatchSpec):
        facts = replace(facts, size=replace(facts.size, shape=_shape(facts.size.shape, measured)))
    tokens, tokens_how = tokens_per_prompt(spec if isinstance(spec, TrySpec) else measured)
    forward = forward_flops(facts, tokens)
    search, search_how = _search(spec, measured, facts.size, tokens)
    judge, judge_how = _evaluation(spec, measured, facts.size)
    per_s = speed.flops_per_s / (2 if measured.compute.dtype == "float64" else 1)
    unit = f"{forward / 1e9:.3g} GFLOP a forward, {tokens:.0f} tokens ({tokens_how}), speed from {speed.source}"
    phases = (
        *_preparation(facts),
        Phase("search", search * forward / per_s, f"{search_how}; {unit}"),
        Phase("evaluate", judge * forward / per_s, f"{judge_how}; {unit}"),
    )
    unknown = []
    if phases[0].seconds is None:
        unknown.append(f"how long {_megabytes(facts.download_bytes)} take to download")
    all_doubts = list(doubts)
    searched = measured if isinstance(spec, ChallengeSpec) else spec
    if isinstance(searched, DiscoverSpec) and isinstance(searched.method, Acdc):
        all_doubts.append(DOUBTED_TESTS)
    if measured.compute.device == "cuda":
        unknown.append(f"how fast the GPU is: the seconds are those of {speed.source}")
    memory, disk = _memory(spec, measured, facts.size, tokens), _disk(spec, facts)
    return Plan(phases, memory, disk, (search + judge) * forward, tuple(unknown), tuple(all_doubts))


def _shape(shape: GraphShape, measured: MeasuredSpec) -> GraphShape:
    """Of the graph that a job searches, as far as its spec tells: prompts may lack a role that their task has."""
    shape = replace(shape, split_position=measured.split_position)
    match measured.positions:
        case "all":
            return shape
        case "roles":
            return shape.split_by(_roles_of(measured.task))
        case named:
            return shape.split_by(named)


def _roles_of(task: TaskSpec) -> Iterable[str]:
    if task.pairs is None:
        return TASKS[task.name].roles
    return set.intersection(*(set(pair.spans) for pair in task.pairs))


def forward_flops(facts: ModelFacts, tokens: float) -> float:
    """Of one prompt. Looking up an embedding costs nothing; the unembedding is computed at one position."""
    table = facts.size.vocab_size * facts.size.d_model
    return 2 * (facts.size.n_parameters - facts.n_tables * table) * tokens + 2 * table


def tokens_per_prompt(spec: PromptsSpec | TrySpec) -> tuple[float, str]:
    """An estimate from the length of the text, BOS included, since there is no tokenizer yet."""
    texts = [spec.prompt] if isinstance(spec, TrySpec) else _texts(spec.task)
    mean = statistics.fmean(len(text) for text in texts) / CHARACTERS_PER_TOKEN
    return max(mean, 1.0) + 1, f"{CHARACTERS_PER_TOKEN:.0f} characters a token"


def _texts(task: TaskSpec | MapTaskSpec) -> list[str]:
    if task.pairs is None:
        return [TASKS[task.name].example]
    return [_text(pair) for pair in task.pairs]


def _text(pair: CustomPair) -> str:
    return pair.clean if isinstance(pair.clean, str) else "\n".join(message.content for message in pair.clean)


# -- passes ------------------------------------------------------------------------------------------------------------


def _prompts(task: TaskSpec | MapTaskSpec) -> tuple[int, int]:
    """Searched and held out. Of the user's own prompts no more than there are, shared in the same proportion."""
    n_search, n_held_out = task.sizes
    if task.pairs is None:
        return n_search, n_held_out
    n = min(len(task.pairs), n_search + n_held_out)
    n_search = round(n * n_search / (n_search + n_held_out))
    return n_search, n - n_search


def _search(spec: JobSpec, measured: PromptsSpec, size: Size, tokens: float) -> tuple[float, str]:
    """Bare forwards of one prompt, and in words. A map is measured, not searched, but that is its work."""
    if isinstance(spec, ChallengeSpec):
        assert not isinstance(measured, PatchSpec), "a map has no circuit"
        forwards, how = _search(measured, measured, size, tokens)
        n = runs_of(spec, measured, _rule_of(measured)).searches
        return n * forwards, f"{n:,} searches x {how}" if n else "nothing is searched again"
    if isinstance(spec, PatchSpec):
        n_prompts = _prompts(spec.task)[0]
        forwards, how = forwards_of_map(spec, Graph(size.shape), tokens)
        return n_prompts * forwards, f"{n_prompts:,} prompts x {how}"
    if not isinstance(spec, DiscoverSpec):
        return 0.0, "nothing is searched"
    n_prompts, n_objectives = _prompts(spec.task)[0], len(spec.objectives)
    in_batch = min(n_prompts, max(1, int(spec.compute.batch_tokens // tokens)))
    passes, how = _passes(spec.method, Graph(size.shape), n_prompts, in_batch / n_prompts)
    per_objective = f" x {n_objectives} objectives" if n_objectives > 1 else ""
    return n_prompts * passes * n_objectives, f"{n_prompts:,} prompts x {how}{per_objective}"


def _passes(method: MethodSpec, graph: Graph, n_prompts: int, batch_share: float) -> tuple[float, str]:
    """Bare forwards that a method takes per prompt, and in words. batch_share: of all prompts, those in a batch."""
    n_edges, shape = graph.n_edges, graph.shape
    step = 1 + BACKWARD
    match method.name:
        case "eap" | "node-ap" | "relp" | "gim":
            return 2 + step, "(2 forward + 1 forward-backward)"
        case "information-flow-routes":
            return 1.0, "1 forward"
        case "edge-pruning":
            n = method.steps * batch_share
            return 2 + n * MASKED * step, f"(2 forward + {n:,.0f} masked forward-backward)"
        case "nested-pruning":
            n = method.steps * min(1.0, method.examples / n_prompts)
            before = f"2 masked, 2 forward and {NESTED_WARM_STEPS} forward-backward"
            passes = 2 * MASKED + 2 + NESTED_WARM_STEPS * step + n * MASKED * step
            return passes, f"({before}, {n:,.0f} masked forward-backward)"
        case "eap-ig-inputs" | "mask-ig" | "node-ap-ig":
            return 2 + method.steps * step, f"(2 forward + {method.steps} forward-backward)"
        case "eap-ig-activations":
            n = method.steps * (2 * shape.n_layers + 1)
            return 2 + n * step, f"(2 forward + {n:,} forward-backward)"
        case "ensemble":
            parts = [_passes(part, graph, n_prompts, batch_share) for part in method.methods]
            return sum(n for n, _ in parts), f"({' + '.join(how for _, how in parts)})"
        case "eap-ig-qk":
            anew = shape.n_layers * (shape.n_heads + shape.n_kv_heads) * QK_ANEW
            how = f"(3 forward + {method.steps} forward-backward + attention anew, {anew:.3g} forward)"
            return 3 + method.steps * step + anew, how
        case "exact":
            n = round(n_edges * min(1.0, (method.receivers or graph.n_receivers) / graph.n_receivers))
            return 2 + n * EXACT_EDGE, f"(2 forward + {n:,} edges at half a forward)"
        case "acdc":
            searches = len(method.thresholds) or BISECTION
            n = round(n_edges * ACDC_TESTED * searches * (method.warm_start or 1.0))
            return 2 + n * ACDC_EDGE, f"(2 forward + about {n:,} tested edges at {ACDC_EDGE:g} forwards)"


def _evaluation(spec: JobSpec, measured: PromptsSpec, size: Size) -> tuple[float, str]:
    """Bare forwards of one prompt, and in words."""
    if isinstance(spec, PatchSpec):
        return 0.0, "a map is its own result"
    n_search, n_held_out = _prompts(measured.task)
    if isinstance(spec, TrySpec):
        n_mean = 0 if spec.corrupt else n_search
        return n_mean + 2 + 3 * MASKED, f"{n_mean:,} prompts for the mean, 2 forwards and 3 masked ones on the prompt"
    assert not isinstance(measured, PatchSpec), "a map has no circuit"
    if isinstance(spec, ChallengeSpec):
        runs = runs_of(spec, measured, _rule_of(measured))
        of_core = n_evaluations(Graph(size.shape), EvaluationPlan(measured.evaluation.grid, ()), with_k_star=False)
        of_settings = 3 * runs.settings + runs.found
        masked = (of_settings + N_RANDOM + of_core.held_out) * n_held_out + of_core.search * n_search
        how = f"{runs.settings:,} settings of {n_search + n_held_out:,} prompts, each with up to 4 masked forwards "
        how += "of those held out"
        return 2 * runs.settings * (n_search + n_held_out) + masked * MASKED, how
    cost = circuits_judged(spec, Graph(size.shape))
    masked = cost.search * n_search + cost.held_out * n_held_out
    kinds = [other.kind for other in spec.other_ablations]
    again = len(kinds) * 2 * n_held_out + kinds.count("mean") * n_search
    how = (
        f"at most {cost.search:,} circuits on {n_search:,} prompts and {cost.held_out:,} on {n_held_out:,}, masked "
        f"forwards at {MASKED:.0f} bare ones; 2 forwards of every prompt"
    )
    if kinds:
        how += f", and again of those held out for {len(kinds)} other ablations"
    return 2 * (n_search + n_held_out) + again + masked * MASKED, how


def _rule_of(behind: MeasuredSpec) -> str:
    """How the circuit was selected, as far as its job tells: k* may have chosen another ranking rule."""
    if not isinstance(behind, DiscoverSpec):
        return "hypothesis"
    return "decisions" if isinstance(behind.method, Acdc) else behind.selection.rule or "signed"


def evaluation_plan(spec: MeasuredSpec) -> EvaluationPlan:
    """What a job asks to be evaluated."""
    wanted, rule = spec.evaluation, spec.selection.rule
    return EvaluationPlan(
        grid=wanted.grid,
        rules=wanted.rules,
        k_star_rules=None if rule is None else (rule,),
        random_circuits=wanted.random_circuits,
        band_circuits=wanted.band_circuits,
        **wanted.parts(),
        other_ablations=len(spec.other_ablations),
        reach=spec.selection.faithfulness,
        seed=spec.seed,
    )


def circuits_judged(spec: MeasuredSpec, graph: Graph) -> Cost:
    """Masked forwards of a job's whole evaluation, a prompt of each split: an upper bound."""
    plan = evaluation_plan(spec)
    kept, ranked = (n_evaluations(graph, plan, with_k_star=looks) for looks in (False, True))
    if isinstance(spec, DiscoverSpec) and isinstance(spec.method, Acdc):
        n = len(spec.method.thresholds) or 1  # each keeps its own decisions, which no curve is drawn of;
        decided = n_evaluations(graph, replace(plan, rules=()), with_k_star=False)
        of_ranking = kept if spec.selection.size is not None else ranked
        n_ranked = int(n > 1)  # of several there is a ranking besides
        return Cost(
            n * decided.search + n_ranked * of_ranking.search, n * decided.held_out + n_ranked * of_ranking.held_out
        )
    is_found = isinstance(spec, DiscoverSpec) or spec.selection.faithfulness is not None
    return ranked if is_found and spec.selection.size is None else kept


# -- before the search: seconds, memory, disk --------------------------------------------------------------------------


def _preparation(facts: ModelFacts) -> tuple[Phase, ...]:
    n_parameters = facts.size.n_parameters
    if facts.download_bytes:
        download = Phase("download", None, f"{_megabytes(facts.download_bytes)}; depends on the network")
    else:
        download = Phase("download", 0.0, "the model is already here")
    if facts.converts:
        how = f"{n_parameters / 1e6:.0f} million parameters at {CONVERTED_PER_S / 1e6:.0f} million a second, once"
        convert = Phase("convert", n_parameters / CONVERTED_PER_S, how)
    else:
        convert = Phase("convert", 0.0, "nothing to convert")
    how = f"{START_S:.0f} s to start, {_megabytes(facts.stored_bytes)} at {READ_BYTES_PER_S / 1e6:.0f} MB/s"
    return download, convert, Phase("load", START_S + facts.stored_bytes / READ_BYTES_PER_S, how)


def _memory(asked: JobSpec, spec: PromptsSpec, size: Size, tokens: float) -> Need:
    n_bytes = DTYPE_BYTES[spec.compute.dtype]
    weights, residual, graph = size.n_parameters * n_bytes, size.d_model * n_bytes, Graph(size.shape)
    in_batch = max(spec.compute.batch_tokens, tokens)
    streams = int(RESIDUALS_PER_LAYER * size.shape.n_layers * in_batch * residual)
    logits = int(in_batch / tokens * size.vocab_size) * 8
    n_search, n_held_out = _prompts(spec.task)
    others = not isinstance(spec, PatchSpec) and bool(spec.other_ablations)  # one at a time
    n_prompts = n_search + n_held_out * (2 if others else 1)
    of_prompt = tokens * prepared_streams(graph, 1.0) * residual + size.vocab_size * 8
    if isinstance(spec, DiscoverSpec) and any(part.name in ("acdc", "exact") for part in methods_in(spec.method)):
        working = {"budget of the search": spec.compute.memory_bytes}
    else:
        one = int(masked_streams(graph) * in_batch * residual)
        working = {"masked forwards": min(spec.compute.memory_bytes, one)}
    if trained := _trained_tokens(spec, in_batch, tokens):
        working["masks' gradient"] = int(trained_streams(graph) * trained * residual)
    parts = {
        "program": PROCESS_BYTES,
        "weights": weights,
        "a model with random ones": weights if isinstance(asked, ChallengeSpec) and asked.controls else 0,
        f"clean and ablated runs of {n_prompts:,} prompts": int(n_prompts * of_prompt),
        **working,
        f"activations ({RESIDUALS_PER_LAYER} residual streams a layer)": streams,
        "logits": logits,
    }
    return Need(sum(parts.values()), _sum_in_words(parts))


def _trained_tokens(spec: PromptsSpec, in_batch: float, tokens: float) -> float:
    """Of the prompts that a method which trains masks runs in a step, the most of them."""
    methods = methods_in(spec.method) if isinstance(spec, DiscoverSpec) else ()
    nested = (min(in_batch, method.examples * tokens) for method in methods if isinstance(method, NestedPruning))
    pruning = (in_batch for method in methods if isinstance(method, EdgePruning))
    return max((*nested, *pruning), default=0.0)


def _disk(spec: JobSpec, facts: ModelFacts) -> Need:
    parts = {
        "download": facts.download_bytes,
        "converted weights": facts.stored_bytes if facts.converts else 0,
        **_results(spec, Graph(facts.size.shape)),
    }
    return Need(sum(parts.values()), _sum_in_words(parts))


def _results(spec: JobSpec, graph: Graph) -> dict[str, int]:
    if isinstance(spec, PatchSpec):  # every example's metric, the effect and its interval
        n_numbers = _prompts(spec.task)[0] + 3
        return {"map": cells_of_map(spec, graph, tokens_per_prompt(spec)[0]) * n_numbers * NUMBER_BYTES}
    method = spec.method if isinstance(spec, DiscoverSpec) else None
    n_results = len(method.thresholds) or 1 if isinstance(method, Acdc) else 1
    cells = graph.n_senders * graph.n_receivers
    return {"results and a checkpoint": (n_results + 1) * cells * ARRAYS_BYTES}


def _sum_in_words(parts: dict[str, int]) -> str:
    return " + ".join(f"{name} {_megabytes(n)}" for name, n in parts.items() if n)


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e6:.2g} MB"
