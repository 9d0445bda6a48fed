"""Relevance patching (Rezaei Jafari et al. 2025, arXiv 2508.21258): attribution with relevance in place of gradients.

    score[s, r] = <out_s - a_s, c_r>,   c_r: what layer-wise relevance propagation makes of the gradient at input_r

The rules, as in the authors' code (github.com/FarnoushRJ/RelP): the scale of a norm is a constant (LN-rule), an
activation passes f(x) / x in place of f'(x) (identity rule), each branch of a gated product gets half of its gradient
(half rule). With all of them and a frozen attention pattern (AH-rule) a model without biases becomes a sum of paths:
what flows into an MLP, or into the values of a head, is what flows out of it.

attention: "frozen" is the AH-rule: no edge into a query or a key then gets a score. "gradient" leaves attention as it
is, as the authors' own example on GPT-2 does, and lets these edges compete.

Sign and cost are those of `eap`: positive means that the edge helps; 2 forward + 1 forward-backward.
"""

from __future__ import annotations

from dataclasses import replace

from acdc.discovery.attribution import require_slope_at_clean, score_at_clean
from acdc.discovery.problem import Found, Problem
from acdc.patching.backward import Rules, with_rules
from acdc.progress import Progress


def score_relp(problem: Problem, progress: Progress, *, attention: str) -> list[Found]:
    """Raises TaskError for an objective whose gradient at the clean run says nothing, UnsupportedModel for an MLP that
    is not made of the parts that its description says."""
    require_slope_at_clean(problem, "relp")
    rules = Rules(activation="secant", attention=attention)
    return score_at_clean(replace(problem, t=with_rules(problem.t, rules)), progress)
