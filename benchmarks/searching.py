"""One timed exact search, as the parts of bench-exact share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from figures import Lines, clocks

from acdc.discovery.acdc import search_acdc
from acdc.discovery.problem import Found, Problem
from acdc.graph import BoolMatrix
from acdc.metrics import METRICS
from acdc.models.transformer import Transformer
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.tasks.prompts import Pair

Seconds = npt.NDArray[np.float64]  # by the clock, and of all cores
MEMORY = 2**32


def times(ratio: Seconds) -> str:
    """A ratio by the clock and of core time."""
    return f"{ratio[0]:.1f}x (core time {ratio[1]:.1f}x)"


def make_problem(t: Transformer, pairs: Sequence[Pair], objective: str) -> Problem:
    batches = make_batches(t, pairs, 2**20, MEMORY)
    return Problem(t, prepare(t, batches, Resample()), METRICS[objective], MEMORY)


@dataclass(frozen=True)
class Timed:
    """A search with its preparation (clean and corrupt runs). seconds: by the clock and of all cores, see `clocks`."""

    found: Found
    problem: Problem
    seconds: Seconds

    @property
    def kept(self) -> BoolMatrix:
        assert self.found.kept is not None
        return self.found.kept

    @property
    def tested(self) -> int:
        return int(self.found.facts["edges_tested"])

    def story(self) -> str:
        facts, n_nodes = self.found.facts, self.problem.t.graph.n_senders
        return (
            f"{self.tested} edges tested, {int(self.kept.sum())} kept, acceptance {facts['acceptance_rate']:.3f}, "
            f"{facts['node_recomputations'] / facts['rows']:.1f} of {n_nodes} nodes run a row, "
            f"{int(facts['borderline_edges'])} borderline, objective {facts['objective']:.6f} "
            f"(masked forward {facts['objective_by_masked_forward']:.6f})"
        )


def timed_search(t: Transformer, pairs: Sequence[Pair], objective: str, tau: float, lines: Lines) -> Timed:
    begin = clocks()
    problem = make_problem(t, pairs, objective)
    (found,) = search_acdc(problem, lines, thresholds=[tau], rule="signed")
    return Timed(found, problem, clocks() - begin)
