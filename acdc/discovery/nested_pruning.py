"""A ranking trained so that its circuits are faithful at every size at once.

Attribution scores each edge against the whole model; edge pruning trains the masks of one size. Here every edge has a
number, and the circuit of n edges is the n edges with the largest: circuits are nested, as in any ranking. Each step
draws a size and some prompts, runs that circuit, and moves the numbers by gradient descent so that it comes nearer to
the model, example by example and in its whole prediction:

    loss = mean over examples of ((m(C) - m(M)) / (mean m(M) - mean m(empty)))^2 + weight * KL(C) / mean KL(empty)

The mask that is run is 0 or 1; its gradient is taken as if it were sigmoid((number - threshold) / temperature)
(straight-through, Bengio et al. 2013, arXiv 1308.3432), so it reaches the edges around the threshold, kept or not. An
edge so far from the circuit that only a much larger one has it is judged when a size about there is drawn. Numbers are
blurred by noise before the circuit is cut: what is trained is that circuits near a ranking's are faithful too, and it
carries over to other prompts far better.

Numbers are logarithms: the edge in place p of N begins at ln(N / p), and the result is told in the same way, by its
place. So the circuit of n edges are those with a score of at least ln(N / n). The order that it begins with is that of
attribution's root mean square over examples: in the mean what an edge does to one example stands against the opposite
that it does to another, and circuits without such edges are right on neither.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from acdc.circuit import Scores
from acdc.discovery.attribution import require_gradient
from acdc.discovery.eap import score_eap_ig_inputs
from acdc.discovery.mask_training import adam, drawn_batch, draws_of, load, remembered, saved
from acdc.discovery.problem import Found, Problem
from acdc.errors import ModelError, TaskError
from acdc.graph import Graph
from acdc.metrics import METRICS
from acdc.patching.circuits import PerExample, Prompts, measure
from acdc.patching.masked import run_masked
from acdc.progress import Checkpoint, Progress
from acdc.selection import rank

KL = METRICS["kl_divergence"]  # minus the divergence
TEMPERATURE = 0.3  # of the slope of a mask, in units of ln(size)
NOISE = 0.5  # standard deviation of what blurs numbers, in the same units
# Shares of the edges that a step's circuit is drawn with: half of the time evenly in the logarithm, half evenly.
IN_LOGARITHM, EVENLY = (0.003, 0.9), (0.01, 0.6)
WARM_STEPS = 5  # of the attribution that it begins with
WARM_UP = 0.05  # share of the steps in which the rate grows; then it falls to nothing
NO_EXAMPLES = "a ranking is trained on all examples together"
EVERY = 20  # steps between checkpoints


def search_nested_pruning(
    problem: Problem,
    progress: Progress,
    *,
    steps: int,
    rate: float,
    kl_weight: float,
    examples: int,
    draw_seed: int,
) -> list[Found]:
    """examples: run in a step, at most a batch. kl_weight: of the KL term. Raises TaskError where the objective
    has no gradient, or does not tell the model from the empty circuit."""
    require_gradient(problem)
    training = _Training(problem, _Scale.of(problem), steps, rate, kl_weight, examples, draw_seed)
    resumed = progress.resume()
    if resumed is not None:
        training.load(resumed)
    else:
        training.begin_with(_attributed(problem, progress))
    progress.phase("nested-pruning", steps)
    while training.step < steps:
        loss = training.take_step()
        progress.step(training.step, f"loss {loss:.2f}")
        if training.step % EVERY == 0:
            progress.save(training.checkpoint())
    sizes = np.array([len(p.batch.examples) for p in problem.prompts])
    in_step = np.average(np.minimum(examples, sizes), weights=sizes)
    passes = {"forward": 4.0, "forward_backward": WARM_STEPS + steps * float(in_step) / problem.n_examples}
    tested = problem.t.graph.legal.copy()
    return [Found(training.scores(), tested, passes=passes, why_no_examples=NO_EXAMPLES)]


def _attributed(problem: Problem, progress: Progress) -> Scores:
    """The root mean square over examples: [senders, receivers]"""
    (found,) = score_eap_ig_inputs(replace(problem, keep_examples=True), progress, steps=WARM_STEPS)
    each = found.per_example
    assert each is not None
    return problem.t.graph.matrix_of(np.sqrt(np.einsum("ij,ij->j", each, each) / len(each)))


@dataclass(frozen=True)
class _Scale:
    """of_model: the objective of the model on every example [example]. span: how far its mean lies above that of the
    empty circuit. kl: mean KL of the empty circuit."""

    of_model: PerExample
    span: float
    kl: float

    @classmethod
    def of(cls, problem: Problem) -> _Scale:
        """Raises TaskError where there is nothing to divide by."""
        graph, objective = problem.t.graph, problem.objective
        both = torch.from_numpy(np.stack([graph.legal, np.zeros_like(graph.legal)]).astype(np.float32))
        found = measure(problem.t, problem.prompts, both, list({objective, KL}), problem.memory_bytes)
        model, empty = found[objective.name]
        span, kl_of_empty = float(model.mean() - empty.mean()), -float(found[KL.name][1].mean())
        if not (abs(span) > 1e-6 * max(1.0, float(np.abs(model).max())) and kl_of_empty > 0):
            raise TaskError(
                f"{objective.name} is {model.mean():.3g} of the model and {empty.mean():.3g} of the empty circuit: "
                "there is nothing between them to be faithful to; choose another objective, task or ablation"
            )
        return cls(model, span, kl_of_empty)


class _Training:
    """numbers: one an edge [n_edges], in the graph's order."""

    def __init__(
        self, problem: Problem, scale: _Scale, steps: int, rate: float, kl_weight: float, examples: int, seed: int
    ) -> None:
        self.problem, self.scale, self.steps, self.rate, self.kl_weight = problem, scale, steps, rate, kl_weight
        self.examples, self.seed = examples, seed
        self.step = 0
        t, graph = problem.t, problem.t.graph
        receivers, senders = np.nonzero(graph.legal.T)  # in the graph's order
        self.edges = torch.from_numpy(senders).to(t.device), torch.from_numpy(receivers).to(t.device)
        self.numbers = torch.zeros(graph.n_edges, dtype=torch.float32, device=t.device, requires_grad=True)
        self.by = adam(self.numbers, rate)

    @torch.no_grad()
    def begin_with(self, scores: Scores) -> None:
        graph = self.problem.t.graph
        self.numbers.copy_(torch.from_numpy(graph.in_order(_by_place(graph, scores, "absolute"))))

    def take_step(self) -> float:
        """The loss. Raises ModelError where it is no number."""
        draws = np.random.default_rng(draws_of(self.seed, self.step))
        n, (p, of_model) = self._size(draws), self._prompts(draws)
        for group in self.by.param_groups:
            group["lr"] = self.rate * min(1.0, (self.step + 1) / (WARM_UP * self.steps)) * (1 - self.step / self.steps)
        with torch.enable_grad():
            loss = self._loss(p, of_model, self._mask(n, draws))
            (gradient,) = torch.autograd.grad(loss, self.numbers)
        if not bool(gradient.isfinite().all()):
            raise ModelError(f"nested pruning met a gradient that is not a finite number in step {self.step + 1}")
        self.numbers.grad = gradient
        self.by.step()
        self.step += 1
        return float(loss.detach())

    def scores(self) -> Scores:
        graph = self.problem.t.graph
        return _by_place(graph, graph.matrix_of(self.numbers.detach().cpu().numpy()), "signed")  # many end below 0

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        return saved(self.step, remembered("numbers", self.numbers, self.by))

    def load(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        load(checkpoint, remembered("numbers", self.numbers, self.by))

    # -- one step ------------------------------------------------------------------------------------------------------

    def _size(self, draws: np.random.Generator) -> int:
        """Edges of this step's circuit."""
        if draws.random() < 0.5:
            share = float(np.exp(draws.uniform(*np.log(IN_LOGARITHM))))
        else:
            share = float(draws.uniform(*EVENLY))
        return max(1, round(share * len(self.numbers)))

    def _prompts(self, draws: np.random.Generator) -> tuple[Prompts, PerExample]:
        """Some examples of one batch, and the model's objective on them."""
        p = drawn_batch(self.problem, draws)
        chosen = draws.choice(p.batch.examples, size=min(self.examples, len(p.batch.examples)), replace=False)
        narrowed = p.narrowed(chosen.tolist())
        assert narrowed is not None
        return narrowed, self.scale.of_model[chosen[list(narrowed.batch.examples)]]

    def _mask(self, n: int, draws: np.random.Generator) -> Tensor:
        """[senders, receivers]: 1 at the n edges with the largest blurred numbers, with the slope of a sigmoid."""
        noise = draws.standard_normal(len(self.numbers), dtype=np.float32)
        blurred = self.numbers + NOISE * torch.from_numpy(noise).to(self.numbers)
        threshold = blurred.detach().topk(n).values[-1]
        soft = torch.sigmoid((blurred - threshold) / TEMPERATURE)
        hard = (blurred.detach() >= threshold).to(soft)
        flat = hard + (soft - soft.detach())
        empty = flat.new_zeros(self.problem.t.graph.legal.shape)
        return empty.index_put(self.edges, flat)

    def _loss(self, p: Prompts, of_model: PerExample, mask: Tensor) -> Tensor:
        problem, scale = self.problem, self.scale
        last = run_masked(problem.t, p.inputs, p.ablation, mask.unsqueeze(0), p.prefix, p.roles)
        logits = problem.t.unembed(p.read(last[0]))
        values = problem.objective(logits, p.batch, p.clean_logprobs)
        missing = (values - torch.from_numpy(of_model).to(values)) / scale.span
        kl = -KL(logits, p.batch, p.clean_logprobs) / scale.kl
        loss: Tensor = (missing**2).mean() + self.kl_weight * kl.mean()
        return loss


def _by_place(graph: Graph, scores: Scores, rule: str) -> Scores:
    """ln(N / place) of every edge, places by a rule of selection: [senders, receivers]."""
    order = rank(graph, scores, graph.legal, rule).order
    places = np.zeros(graph.legal.size, dtype=np.float32)
    places[order] = np.log(len(order) / np.arange(1, len(order) + 1))
    return places.reshape(graph.legal.shape)
