"""Gradient interaction modifications (Edin et al. 2025, arXiv 2505.17630): attribution past attention's self-repair.

    score[s, r] = <out_s - a_s, modified gradient at input_r>

Where two keys carry the same, neither alone changes much: the softmax hands its weight to the other, and the gradient
of each is near zero. Three changes to the backward pass (as in the authors' code, github.com/JoakimEdin/gim and
corticph/gim, where the temperature is 2):

    temperature-adjusted softmax gradient: the softmax's Jacobian at scores / temperature, not divided by it
    norm freezing: the scale of a norm is a constant
    gradient normalisation: each factor of a product gets half: values 1/2, queries and keys 1/4, a gate and what it
        gates 1/2

Sign and cost are those of `eap`: positive means that the edge helps; 2 forward + 1 forward-backward.
"""

from __future__ import annotations

from dataclasses import replace

from acdc.discovery.attribution import require_slope_at_clean, score_at_clean
from acdc.discovery.problem import Found, Problem
from acdc.patching.backward import Rules, with_rules
from acdc.progress import Progress


def score_gim(problem: Problem, progress: Progress, *, temperature: float) -> list[Found]:
    """Raises TaskError for an objective whose gradient at the clean run says nothing, UnsupportedModel for an MLP that
    is not made of the parts that its description says."""
    require_slope_at_clean(problem, "gim")
    rules = Rules(attention="tempered", temperature=temperature)
    return score_at_clean(replace(problem, t=with_rules(problem.t, rules)), progress)
