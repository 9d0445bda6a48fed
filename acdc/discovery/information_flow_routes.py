"""Information flow routes (Ferrando & Voita 2024, arXiv 2403.00824): how near each sender's part is to what is read.

    score[s, r] = mean over tokens of  near[s] / sum of near,   near[s] = max(0, |y|_1 - |y - x_s|_1),

y being the sum of all x_s that r can read.

One forward pass of the clean prompts: nothing is ablated, no metric is asked and no gradient is taken. So it says what
flows, not what matters for the task. The three inputs of a head read the same stream, and so does every head of a
layer: their edges get equal scores, told apart by canonical order alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.discovery.problem import Found, Problem
from acdc.graph import Graph
from acdc.patching.forward import record
from acdc.patching.gradients import TILE, written
from acdc.progress import Progress

NO_EXAMPLES = "the scores are means over tokens, not over examples"


@torch.no_grad()
def score_information_flow_routes(problem: Problem, progress: Progress) -> list[Found]:
    """The tokens are those of the prompts themselves, all alike."""
    t = problem.t
    total = torch.zeros(t.graph.legal.shape, dtype=torch.float64, device=t.device)
    n_tokens = 0
    progress.phase("information flow", len(problem.prompts))
    for done, p in enumerate(problem.prompts):
        outputs, _ = record(t, p.batch.clean)
        counts = p.batch.prompt_positions().flatten().double()
        for start in range(0, len(counts), TILE):
            tile = slice(start, start + TILE)
            total += _shares(t.graph, written(t, outputs, tile), counts[tile])
        n_tokens += int(counts.sum())
        progress.step(done + 1)
    scores = (total / n_tokens).float().cpu().numpy()
    return [Found(scores, t.graph.legal.copy(), passes={"forward": 1}, why_no_examples=NO_EXAMPLES)]


def _shares(graph: Graph, parts: Tensor, counts: Tensor) -> Tensor:
    """parts: what every sender writes [senders, token, d]; counts: [token]. Summed over tokens [senders, receivers]."""
    shares = torch.zeros(graph.legal.shape, dtype=torch.float64, device=parts.device)
    for known in sorted(set(graph.n_senders_before.tolist())):
        read = parts[:known].sum(0)
        near = read.abs().sum(-1) - (read - parts[:known]).abs().sum(-1)  # [known, token]
        near = near.clamp(min=0).double()
        of_sender = (near / near.sum(0).clamp(min=1e-30)) @ counts
        columns = torch.from_numpy((graph.n_senders_before == known).nonzero()[0]).to(parts.device)
        shares[:known, columns] = of_sender[:, None]
    return shares
