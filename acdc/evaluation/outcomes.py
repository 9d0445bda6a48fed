"""What circuits did on a set of prompts, example by example."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What circuits did on one set of prompts, each array [n_circuits, n_examples].

    metric: oriented so that higher is better. kl: KL(model || circuit) in nats. correct: the right answer won.
    answer_logprob: log P(right answer).
    """

    metric: Floats
    kl: Floats
    correct: Bools
    answer_logprob: Floats

    def row(self, i: int) -> Outcome:
        return Outcome(self.metric[i], self.kl[i], self.correct[i], self.answer_logprob[i])


@dataclass(frozen=True, eq=False)
class Outcome:
    """One circuit's row of `Outcomes`: each array [n_examples]."""

    metric: Floats
    kl: Floats
    correct: Bools
    answer_logprob: Floats

    @property
    def mean_metric(self) -> float:
        return float(self.metric.mean(dtype=np.float64))

    @property
    def mean_kl(self) -> float:
        return float(self.kl.mean(dtype=np.float64))

    def of_examples(self, chosen: Bools) -> Outcome:
        return Outcome(self.metric[chosen], self.kl[chosen], self.correct[chosen], self.answer_logprob[chosen])
