"""Edge pruning (Bhaskar et al. 2024, arXiv 2406.16778): one mask per edge, trained until as many are cut as wanted.

Each edge has a number, log_alpha, and each step draws its mask from the hard concrete distribution around it (Louizos
et al. 2018, arXiv 1712.01312): stretched beyond 0 and 1 and clipped, so that masks are often exactly open or shut.
Gradient descent raises the objective of the masked run while a Lagrangian holds the share of cut edges to a target,
which grows step by step from nothing to what is asked for:

    loss = -m(masked) + l1 (s - target) + l2 (s - target)^2,    s = the share of edges cut,    l1, l2 by gradient ascent

The share is the expected one, of masks above 0 (Louizos et al.), where the paper takes that of the masks drawn: those
of open edges are nearly always drawn as exactly 1, where they have no slope, and on a graph of few edges no step would
ever begin to close one. For the same reason log_alpha stays within bounds (as in CoFi, Xia et al. 2022, arXiv
2204.00408): far out neither the objective nor the expected share has a slope, an edge once there never comes back, and
the multipliers grow without end. Shares count an edge at the lower bound as shut and one at the upper as open.

An edge's score is softplus(log_alpha), and, since many end at a bound together, half its mean openness over all steps
beside it: positive for all, larger for edges that stay open longer. It orders edges around the size that was trained
for; how it orders those that fell long before says less.

The masked run is the engine's own (`run_masked`), so every architecture can be trained on. A step takes a batch of the
search prompts; batch and noise are drawn by (seed, step), so a resumed search goes on as it would have.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.circuit import Scores
from acdc.discovery.attribution import require_gradient
from acdc.discovery.mask_ig import score_mask_ig
from acdc.discovery.mask_training import adam, drawn_batch, draws_of, load, remembered, saved
from acdc.discovery.problem import Found, Problem
from acdc.errors import ModelError, TaskError
from acdc.graph import BoolMatrix, Graph
from acdc.patching.circuits import Prompts
from acdc.patching.masked import run_masked
from acdc.progress import Checkpoint, Progress
from acdc.selection import rank, size_of

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3  # of the hard concrete distribution
BOUND = math.log(100)  # of |log_alpha|; masks begin at it
NOISE = 0.01  # how far below it they lie apart
WARM_STEPS = 5  # of the attribution that a warm start begins with
RAMP = 0.8  # share of the steps in which the target grows; the rest is for settling
WARM_UP = 0.05  # share of the steps in which the learning rate grows
FAR_OFF = 0.5  # of the number of edges wanted: what is told
MISSED = (
    "training left {} edges open where {} were wanted: scores order edges around that size; more `steps`, or another "
    "`rate` or `penalty_rate`, may come nearer"
)
NO_EXAMPLES = "masks are trained on all examples together"
EVERY = 20  # steps between checkpoints


def search_edge_pruning(
    problem: Problem,
    progress: Progress,
    *,
    edges: float,
    steps: int,
    rate: float,
    penalty_rate: float,
    warm_start: float | None,
    mask_seed: int,
) -> list[Found]:
    """edges: to be left open, a number or (below 1) a share. warm_start: train only this share of the edges, the
    largest by mask-ig; the others are cut from the start. Raises TaskError where the graph has not so many."""
    require_gradient(problem)
    wanted = _share(problem.t.graph, edges, warm_start)
    training = _Training(problem, wanted, steps, rate, penalty_rate, mask_seed)
    resumed = progress.resume()
    if resumed is not None:
        training.load(resumed)
    elif warm_start is not None:
        training.begin_with(_largest(problem, warm_start, progress))
    progress.phase("edge-pruning", steps)
    while training.step < steps:
        training.take_step()
        progress.step(training.step, f"{training.n_open:,} edges open")
        if training.step % EVERY == 0:
            progress.save(training.checkpoint())
    n_open, n_wanted = training.n_open, round(wanted * problem.t.graph.n_edges)
    found = Found(
        training.scores(),
        problem.t.graph.legal.copy(),
        passes={"forward_backward": steps / len(problem.prompts)},
        facts={"edges_open": float(n_open), "edges_wanted": n_wanted},
        why_no_examples=NO_EXAMPLES,
    )
    far = abs(n_open - n_wanted) > FAR_OFF * n_wanted
    return [replace(found, notes=(MISSED.format(f"{n_open:,}", f"{n_wanted:,}"),)) if far else found]


def _share(graph: Graph, edges: float, warm_start: float | None) -> float:
    share = edges / graph.n_edges if edges >= 1 else edges
    if share > (warm_start or 1.0):
        of = f"{(warm_start or 1.0) * graph.n_edges:,.0f}"
        raise TaskError(
            f"edge pruning is asked to leave {share * graph.n_edges:,.0f} edges open and has {of}: lower `edges`"
            + ("" if warm_start is None else " or raise `warm_start`")
        )
    return share


def _largest(problem: Problem, share: float, progress: Progress) -> BoolMatrix:
    graph = problem.t.graph
    (found,) = score_mask_ig(replace(problem, keep_examples=False), progress, steps=WARM_STEPS)
    return rank(graph, found.scores, found.tested, "absolute").taken(size_of(share, graph.n_edges))


class _Training:
    """log_alpha [senders, receivers] of every edge, the two multipliers, and what Adam remembers of them."""

    def __init__(
        self, problem: Problem, wanted: float, steps: int, rate: float, penalty_rate: float, seed: int
    ) -> None:
        self.problem, self.wanted, self.steps, self.rate, self.seed = problem, wanted, steps, rate, seed
        self.step = 0
        self.trained = problem.full_mask().to(problem.t.device, torch.float32)  # 1 at every edge that has a mask
        noise = torch.rand(self.trained.shape, generator=self._generator(-1))
        self.log_alpha = (BOUND - NOISE * noise).to(self.trained).requires_grad_(True)
        self.openness = torch.zeros_like(self.trained)  # sigmoid(log_alpha), averaged over the steps so far
        self.multipliers = torch.zeros(2, dtype=self.trained.dtype, device=self.trained.device, requires_grad=True)
        self.masks_by = adam(self.log_alpha, rate)
        self.multipliers_by = adam(self.multipliers, penalty_rate, maximize=True)

    def begin_with(self, trained: BoolMatrix) -> None:
        """Cut all other edges for good."""
        self.trained.copy_(torch.from_numpy(trained).to(self.trained))

    @property
    def n_open(self) -> int:
        """Edges whose mask is more open than shut, without noise."""
        return int(((self.log_alpha > 0) & (self.trained > 0)).sum())

    def take_step(self) -> None:
        """Raises ModelError where the objective is no number."""
        p = drawn_batch(self.problem, np.random.default_rng(draws_of(self.seed, self.step)))
        at_first = float(self.trained.sum()) / self.problem.t.graph.n_edges
        done = min(1.0, (self.step + 1) / (RAMP * self.steps))
        target = 1 - (1 - done) * at_first - done * self.wanted
        for group in self.masks_by.param_groups:
            group["lr"] = self.rate * min(1.0, (self.step + 1) / (WARM_UP * self.steps))
        with torch.enable_grad():
            masks = self._draw()
            missing = self._share_cut() - target
            loss = -self._objective(p, masks) + self.multipliers[0] * missing + self.multipliers[1] * missing**2
            gradients = torch.autograd.grad(loss, (self.log_alpha, self.multipliers))
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise ModelError(f"edge pruning met a gradient that is not a finite number in step {self.step + 1}")
        self.log_alpha.grad, self.multipliers.grad = gradients
        self.masks_by.step()
        self.multipliers_by.step()
        with torch.no_grad():
            self.log_alpha.clamp_(-BOUND, BOUND)
            self.openness.lerp_(torch.sigmoid(self.log_alpha), 1 / (self.step + 1))
        self.step += 1

    def scores(self) -> Scores:
        lasting = F.softplus(self.log_alpha.detach()) + self.openness / 2
        return (lasting * self.trained).cpu().numpy()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        return saved(self.step, self._tensors())

    def load(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        load(checkpoint, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        """All that a step changes, and which edges are trained."""
        return {
            "trained": self.trained,
            "openness": self.openness,
            **remembered("log_alpha", self.log_alpha, self.masks_by),
            **remembered("multipliers", self.multipliers, self.multipliers_by),
        }

    # -- one step ------------------------------------------------------------------------------------------------------

    def _generator(self, step: int) -> torch.Generator:
        seed = int(draws_of(self.seed, step).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator().manual_seed(seed)

    def _draw(self) -> Tensor:
        """A mask for every edge, 0 where none is: [senders, receivers]."""
        noise = torch.rand(self.trained.shape, generator=self._generator(self.step), dtype=torch.float64)
        noise = noise.clamp(1e-6, 1 - 1e-6).logit().to(self.log_alpha)
        opened = torch.sigmoid((noise + self.log_alpha) / TEMPERATURE)
        return (opened * (HIGH - LOW) + LOW).clamp(0, 1) * self.trained

    def _share_cut(self) -> Tensor:
        """Expected: by the chance that a mask is above 0, between its lowest and its highest, averaged over edges."""
        lowest, highest = (_chance_open(torch.tensor(bound)) for bound in (-BOUND, BOUND))
        is_open = (_chance_open(self.log_alpha) - lowest) / (highest - lowest)
        return 1 - (is_open * self.trained).sum() / self.problem.t.graph.n_edges

    def _objective(self, p: Prompts, masks: Tensor) -> Tensor:
        """Its mean over the batch. masks: float32"""
        rows = masks.to(self.problem.t.dtype).unsqueeze(0)
        last = run_masked(self.problem.t, p.inputs, p.ablation, rows, p.prefix, p.roles)
        return self.problem.mean_of(p)(last[0]) * (self.problem.n_examples / len(p.batch.examples))


def _chance_open(log_alpha: Tensor) -> Tensor:
    """Of a mask above 0."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))
