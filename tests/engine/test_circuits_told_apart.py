"""What an evaluation must tell apart, on models whose circuit is known and through the engine's own masked forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acdc.evaluation.judging import Plan, judge
from acdc.evaluation.minimality import random_paths
from acdc.evaluation.truth.cases import BATCH_TOKENS, MEMORY_BYTES, case_named
from acdc.evaluation.truth.hand_wired import LENGTH, VOCAB, Wiring
from acdc.models.architectures import wrap
from acdc.patching.ablation import ablation_of
from acdc.patching.batches import make_batches
from acdc.patching.circuits import prepare
from acdc.progress import Quiet
from acdc.selection import Kept
from acdc.setting import PreparedSplit
from acdc.tasks.prompts import Pair


def report_on(t, pairs, mask, ablation="resample", **plan):
    """The evaluation of one circuit; the prompts serve as both splits, since nothing is searched."""
    batches = make_batches(t, pairs, BATCH_TOKENS, MEMORY_BYTES)
    prompts = prepare(t, batches, ablation_of(ablation, t, batches, mean_per_role=False))
    search, held_out = (PreparedSplit(name, pairs, prompts, MEMORY_BYTES) for name in ("search", "held_out"))
    nothing = np.zeros_like(t.graph.legal)
    return judge(
        t.graph,
        nothing.astype(np.float32),
        nothing,
        search=search.split(t, "logit_diff"),
        held_out=held_out.split(t, "logit_diff"),
        plan=Plan((1.0,), **plan),
        progress=Quiet(),
        kept=Kept.of(t.graph, mask, "hypothesis"),
    ).report


@pytest.mark.parametrize("name", ["hand-wired/induction", "hand-wired/two-hops"])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_edges_added_at_random_are_told_from_the_true_ones_by_minimality(name, ablation):
    case = case_named(name)
    t = case.transformer()
    true = case.truth(t.graph, ablation).true
    larger = true.copy()
    for added in random_paths(t.graph, true, 4, np.random.default_rng(0)):
        larger[tuple(np.array(added).T)] = True
    judged = report_on(t, case.pairs(), larger, ablation, minimality=1000, tests=100).minimality
    added = set(t.graph.names_of(t.graph.connected(larger) & ~true))
    assert added
    assert {one.edge for one in judged.removals if one.superfluous} == added
    own = report_on(t, case.pairs(), true, ablation, minimality=1000, tests=100).minimality
    assert own.n_superfluous == 0
    assert all(one.cost > 0 for one in own.removals)


def two_task_model():
    """Induction by heads 0.0 and 1.0; and after the token 7, head 1.1 says what the second token was."""
    wiring = Wiring(("token", "position", "previous", "answer"), n_layers=2, n_heads=4, length=LENGTH)
    same = wiring.same
    wiring.head(0, 0, q=("position", wiring.one_back), k=("position", same), v="token", to="previous")
    wiring.head(1, 0, q=("token", same), k=("previous", same), v="token", to="answer")
    second_after_7 = torch.zeros_like(same)  # [position looked at, token that looks]
    second_after_7[1, 7] = 1
    wiring.head(1, 1, q=("token", second_after_7), k=("position", same), v="token", to="answer")
    return wrap(wiring.read("answer"))


def recall_pairs():
    """x A y z w 7 -> A, where no token stands twice."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(16):
        clean, corrupt = ((*rng.permutation(VOCAB - 1)[:5].tolist(), 7) for _ in range(2))
        if clean[1] != corrupt[1]:
            pairs.append(Pair(clean, corrupt, ((clean[1],),), ((corrupt[1],),), f"pair {i}"))
    return pairs


def induction_pairs():
    """The last token stood before, at another place in the corrupt prompt, and another token came after it there."""
    rng = np.random.default_rng(0)
    pairs = []
    while len(pairs) < 16:
        (clean, at), (corrupt, elsewhere) = (
            (rng.permutation(VOCAB - 1)[:LENGTH], int(rng.integers(4))) for _ in range(2)
        )
        clean[-1], corrupt[-1] = clean[at], corrupt[elsewhere]
        right, wrong = int(clean[at + 1]), int(corrupt[elsewhere + 1])
        if at != elsewhere and right != wrong:
            pairs.append(Pair((*clean.tolist(),), (*corrupt.tolist(),), ((right,),), ((wrong,),), f"pair {len(pairs)}"))
    return pairs


INDUCTION = ("embed->0.0.v", "0.0->1.0.k", "embed->1.0.q", "embed->1.0.v", "1.0->logits")
RECALL = ("embed->1.1.v", "1.1->logits")


@pytest.mark.parametrize(("own", "other"), [(INDUCTION, RECALL), (RECALL, INDUCTION)])
def test_the_circuit_of_another_task_is_told_by_sufficiency(own, other):
    t = two_task_model()
    pairs = induction_pairs() if own is INDUCTION else recall_pairs()
    found = {}
    for edges in (own, other):
        report = report_on(t, pairs, t.graph.mask_of_edges(edges), tests=100)
        found[edges] = {test.name: test.rejected for test in report.tests}
        f = next(point.f for point in report.kept if point.split == "held_out")
        assert f > 0.8 if edges is own else f < 0.2
    assert found[own]["sufficiency"] is True
    assert found[other]["sufficiency"] is False


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_a_whole_circuit_is_not_held_against_what_prompts_have_in_common_without_it(ablation):
    """Every pair of answers has logits of its own, for the model and for the empty circuit, so their metrics depend on
    each other; what the rest of the model does is what the empty circuit does."""
    case = case_named("tracr/share-of-x")
    t = case.transformer()
    true = case.truth(t.graph, ablation).true
    whole, rest = (
        next(test for test in report_on(t, case.pairs(), mask, ablation).tests if test.name == "independence")
        for mask in (true, t.graph.legal & ~true)
    )
    assert (whole.p, whole.rejected) == (None, None)
    assert whole.says.startswith("cannot be told: what the rest of the model adds to the empty circuit is the same")
    assert rest.rejected
    assert "100.0% of what the model adds" in rest.says


def test_a_circuit_that_does_nothing_is_no_nearer_to_the_model_than_random_ones_that_do_nothing_either():
    t = two_task_model()
    idle = t.graph.mask_of_edges(["embed->0.3.v", "0.3->logits"])  # head 0.3 is not wired
    report = report_on(t, induction_pairs(), idle, tests=100)
    assert report.kept_held_out.f == 0
    found = {test.name: test for test in report.tests}
    sufficient = found["sufficiency"]
    assert (sufficient.statistic, sufficient.rejected) == (0, False)
    assert sufficient.says.endswith(f"random circuits (0 of {sufficient.n}, {sufficient.n} as near)")
    assert found["partial necessity"].says.endswith("as far)")


def test_the_complement_of_a_whole_circuit_does_nothing_and_knock_outs_find_no_gap():
    case = case_named("hand-wired/induction")
    t = case.transformer()
    part = report_on(t, case.pairs(), case.truth(t.graph, "resample").true, knock_outs=10).completeness
    assert part.complement.f == pytest.approx(0, abs=1e-6)
    assert {one.how for one in part.knock_outs} == {"random", "layer", "greedy"}
    assert part.worst.gap == pytest.approx(0, abs=1e-6)


def test_a_circuit_without_the_backup_of_an_or_is_found_incomplete():
    """Head 0.0 alone keeps the OR on, and so does head 0.1: without head 0.0 the model still says yes, the circuit no.
    The complement does not show it, since it lacks what both need."""
    case = case_named("gates/or")
    t = case.transformer()
    half = t.graph.mask_of_edges(["embed->0.0.v", "0.0->mlp0", "mlp0->logits"])
    pairs = list(case.pairs()) * 4  # few that differ as much as these do not carry a scale
    report = report_on(t, pairs, half, knock_outs=10)
    assert next(point.f for point in report.kept) == pytest.approx(1)
    assert report.completeness.complement.f == pytest.approx(0)
    assert report.completeness.worst.gap == pytest.approx(1)
    whole = report_on(t, pairs, case.truth(t.graph, "resample").true, knock_outs=10)
    assert whole.completeness.worst.gap == pytest.approx(0, abs=1e-6)
