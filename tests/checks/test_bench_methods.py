"""The scoreboard's sums, and when a row that was run still counts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acdc.discovery import METHODS
from acdc.evaluation.curve import Judge, curve, scale_on, sizes_of
from acdc.evaluation.k_star import meets
from acdc.evaluation.measuring import Ledger
from acdc.progress import Quiet
from acdc.selection import GRID, rank
from acdc.spec import parse_job
from acdc.tasks.prompts import Pair, PromptSet

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import methods

    monkeypatch.chdir(tmp_path)  # where it would keep rows
    return methods


def score(benchmark: Any, cmd_guarded: float | None, seconds: float = 1.0, key: str = "") -> Any:
    return benchmark.Score(64, seconds, 1.0, key, cmd_guarded=cmd_guarded)


def test_figures_are_those_of_the_worst_cell(benchmark: Any) -> None:
    base, default = benchmark.BASELINE, benchmark.DEFAULT
    cells = {
        "one": {
            base: score(benchmark, 0.10),
            default: score(benchmark, 0.05, 2.0),
            "best": score(benchmark, 0.02, 10.0),
        },
        "other": {
            base: score(benchmark, 0.08),
            default: score(benchmark, 0.06, 3.0),
            "best": score(benchmark, 0.048, 6.0),
        },
        "withheld": {base: score(benchmark, None), default: score(benchmark, None)},
        "without the baseline": {"best": score(benchmark, 0.01)},
        "two alone": {base: score(benchmark, 0.08), default: score(benchmark, 0.01, 9.0), "not run": None},
    }
    found = {figure.name: figure for figure in benchmark.figures_of(cells)}
    assert found["cmd-best-over-eap-ig-worst-cell"].value == pytest.approx(0.048 / 0.08)
    assert found["cmd-best-over-eap-ig-median"].value == pytest.approx(0.02 / 0.10)
    assert found["cmd-default-gap"].value == pytest.approx(0.03)
    assert found["cost-default-over-best"].value == pytest.approx(0.5)
    runs = {name: figure.runs for name, figure in found.items()}
    assert runs == {
        "cmd-best-over-eap-ig-worst-cell": 3,
        "cmd-best-over-eap-ig-median": 3,
        "cmd-default-gap": 2,
        "cost-default-over-best": 2,
    }
    assert found["cmd-default-gap"].how.endswith("worst of 2 of 5 cells: one, best of the 3 of 3 methods run there")


def test_a_row_hangs_on_the_code_of_its_method_and_not_on_that_of_others(benchmark: Any) -> None:
    assert benchmark.code_of(frozenset({"relp"})) != benchmark.code_of(frozenset({"exact"}))
    closure = benchmark.modules_of(METHODS["edge-pruning"].__module__)
    assert {"acdc.discovery.edge_pruning", "acdc.discovery.mask_ig", "acdc.discovery.attribution"} <= closure
    assert "acdc.discovery.exact" not in closure
    assert "acdc.discovery.relp" not in closure
    judging = benchmark.modules_of("acdc.evaluation.curve")
    assert {"acdc.evaluation.curve", "acdc.evaluation.faithfulness", "acdc.evaluation.bootstrap"} <= judging
    assert "acdc.evaluation.hypotheses" not in judging


def test_a_row_hangs_on_what_was_asked_with_defaults_written_out(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, entry = benchmark.CELLS[0], benchmark.Entry("nested-pruning", {"name": "nested-pruning"})
    key = benchmark.key_of(cell, entry, 64)
    steps = parse_job({"method": {"name": "nested-pruning"}}).method.steps
    in_words = benchmark.Entry("nested-pruning", {"name": "nested-pruning", "steps": steps})
    assert benchmark.key_of(cell, in_words, 64) == key
    others = [
        (cell, benchmark.Entry("nested-pruning", {"name": "nested-pruning", "steps": steps + 1}), 64),
        (cell, benchmark.Entry("nested-pruning", {"name": "nested-pruning"}, prompts=16), 64),
        (cell, entry, 32),
        (benchmark.CELLS[1], entry, 64),
    ]
    keys = {benchmark.key_of(*other) for other in others}
    monkeypatch.setattr(benchmark, "HELD_OUT", 32)
    keys.add(benchmark.key_of(cell, entry, 64))
    assert len(keys | {key}) == 6


def test_all_methods_in_a_cell_are_judged_on_the_same_held_out_prompts(benchmark: Any) -> None:
    assert len({entry.prompts for entry in benchmark.ENTRIES}) > 1
    for cell in benchmark.CELLS:
        assert len({benchmark.spec_of(cell, entry, 64).task.model_dump_json() for entry in benchmark.ENTRIES}) == 1


def test_searched_and_held_out_prompts_have_no_name_in_common(benchmark: Any) -> None:
    rng = np.random.default_rng(0)

    def pairs(n: int) -> tuple[Pair, ...]:
        drawn = [tuple(map(int, rng.choice(20, 2, replace=False))) for _ in range(n)]
        roles = {"IO": (1, 2), "S1": (2, 3), "end": (3, 4)}
        return tuple(Pair((0, *two, 0), (0, 99, 99, 0), ((two[0],),), ((two[1],),), "g", roles) for two in drawn)

    made = PromptSet("ioi", "abc", pairs(400), pairs(400))
    found = benchmark.parted(made, ("IO", "S1"), 16)
    assert (len(found.search), len(found.held_out)) == (16, benchmark.HELD_OUT)
    names = [{token for pair in half for token in pair.clean[1:3]} for half in (found.search, found.held_out)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 20
    with pytest.raises(ValueError, match="prompts without a name in common; draw more"):
        benchmark.parted(PromptSet("ioi", "abc", pairs(20), pairs(20)), ("IO", "S1"), 16)


def test_k_star_is_the_smallest_circuit_that_meets_both_conditions_on_the_searched_prompts_too(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tests" / "evaluation")
    from analytic_measure import SMALL, Additive, split_of

    # the searched prompts need more of the edges than the held-out ones
    measures = {"held_out": lambda kept: kept**0.3, "search": lambda kept: kept**2}
    weights = SMALL.legal.astype(np.float64)
    ledgers = {
        name: Ledger(split_of(Additive(weights, np.ones(5), g=g), name), Quiet()) for name, g in measures.items()
    }
    judge = Judge(SMALL, ledgers, {name: scale_on(ledger, SMALL, 0) for name, ledger in ledgers.items()})
    rankings = {"absolute": rank(SMALL, weights.astype(np.float32), SMALL.legal, "absolute")}
    points = curve(judge, list(rankings.values()), sizes_of(GRID, SMALL.n_edges))
    held_out, searched = ([p for p in points if p.split == split] for split in ("held_out", "search"))
    good = [one.connected for one, other in zip(held_out, searched, strict=True) if meets(one) and meets(other)]
    assert benchmark._smallest(judge, rankings, held_out) == min(good)
    assert min(good) > min(one.connected for one in held_out if meets(one))
    assert benchmark._smallest(judge, rankings, held_out[:2]) is None


def test_what_is_only_said_about_code_is_no_part_of_it(benchmark: Any) -> None:
    import figures

    said = 'def f(x):\n    """Twice x."""\n    return 2 * x  # not 3\n'
    assert figures._what_runs(said) == figures._what_runs("def f(x):\n    return 2 * x\n")
    assert figures._what_runs(said) != figures._what_runs("def f(x):\n    return 3 * x\n")


def test_a_stored_row_counts_as_run_while_its_key_stays(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell, entry = benchmark.CELLS[0], benchmark.ENTRIES[0]
    stored = tmp_path / "stored.json"
    monkeypatch.setattr(benchmark, "STORED", stored)
    assert benchmark._known(cell, entry, 64) is None
    for key, counts in ((benchmark.key_of(cell, entry, 64), True), ("other", False)):
        row = asdict(score(benchmark, 0.1, key=key))
        stored.write_text(json.dumps({"environment": {"cells": {cell.name: {entry.name: row}}}}))
        assert (benchmark._known(cell, entry, 64) is not None) == counts


def test_a_stored_correlation_counts_while_the_exact_scores_are_those_it_was_with(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell, entry = benchmark.CELLS[0], benchmark.ENTRIES[0]
    exact = benchmark._exact_in(cell)
    stored = tmp_path / "stored.json"
    monkeypatch.setattr(benchmark, "STORED", stored)
    own = replace(score(benchmark, 0.1, key=benchmark.key_of(cell, entry, 64)), exact_rho=0.5)
    for key, rho in ((benchmark.key_of(cell, exact, 64), 0.5), ("other", None)):
        rows = {entry.name: asdict(own), exact.name: asdict(score(benchmark, None, key=key))}
        stored.write_text(json.dumps({"environment": {"cells": {cell.name: rows}}}))
        assert benchmark._known(cell, entry, 64).exact_rho == rho


def test_ranks_that_agree_correlate_and_ties_share_theirs(benchmark: Any) -> None:
    a = np.array([1.0, 4.0, 2.0, 3.0])
    assert benchmark.rank_correlation(a, a**3) == pytest.approx(1)
    assert benchmark.rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5 (sums of products)
    assert benchmark.rank_correlation(np.array([0, 1, 1, 5]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / 22.5**0.5)


def test_every_method_is_on_the_scoreboard(benchmark: Any) -> None:
    assert {entry.method["name"] for entry in benchmark.ENTRIES} == set(METHODS)
