"""The scoreboard's sums, and when a row that was run still counts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acdc.discovery import METHODS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import methods

    monkeypatch.chdir(tmp_path)  # where it would keep rows
    return methods


def score(benchmark: Any, cmd_guarded: float | None, seconds: float = 1.0, code: str = "") -> Any:
    return benchmark.Score(64, seconds, 1.0, code, cmd_guarded=cmd_guarded)


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
    }
    found = {figure.name: figure for figure in benchmark.figures_of(cells)}
    assert found["cmd-best-over-eap-ig-worst-cell"].value == pytest.approx(0.048 / 0.08)
    assert found["cmd-default-gap"].value == pytest.approx(0.03)
    assert found["cost-default-over-best"].value == pytest.approx(0.5)
    assert all(figure.runs == 2 for figure in found.values())


def test_a_row_hangs_on_the_code_of_its_method_and_not_on_that_of_others(benchmark: Any) -> None:
    codes = {entry.name: benchmark.code_of(entry) for entry in benchmark.ENTRIES}
    assert codes["relp"] != codes["exact"]
    closure = benchmark.modules_of(METHODS["edge-pruning"].__module__)
    assert {"acdc.discovery.edge_pruning", "acdc.discovery.mask_ig", "acdc.discovery.attribution"} <= closure
    assert "acdc.discovery.exact" not in closure
    assert "acdc.discovery.relp" not in closure


def test_what_is_only_said_about_code_is_no_part_of_it(benchmark: Any) -> None:
    import figures

    said = 'def f(x):\n    """Twice x."""\n    return 2 * x  # not 3\n'
    assert figures._what_runs(said) == figures._what_runs("def f(x):\n    return 2 * x\n")
    assert figures._what_runs(said) != figures._what_runs("def f(x):\n    return 3 * x\n")


def test_a_stored_row_counts_as_run_while_its_code_stays(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell, entry = benchmark.CELLS[0], benchmark.ENTRIES[0]
    stored = tmp_path / "stored.json"
    monkeypatch.setattr(benchmark, "STORED", stored)
    assert benchmark._known(cell, entry, 64) is None
    for code, prompts, counts in (
        (benchmark.code_of(entry), 64, True),
        ("other", 64, False),
        (benchmark.code_of(entry), 32, False),
    ):
        row = asdict(score(benchmark, 0.1, code=code))
        stored.write_text(json.dumps({"environment": {"cells": {cell.name: {entry.name: row}}}}))
        assert (benchmark._known(cell, entry, prompts) is not None) == counts


def test_ranks_that_agree_correlate_and_ties_share_theirs(benchmark: Any) -> None:
    a = np.array([1.0, 4.0, 2.0, 3.0])
    assert benchmark.rank_correlation(a, a**3) == pytest.approx(1)
    assert benchmark.rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5 (sums of products)
    assert benchmark.rank_correlation(np.array([0, 1, 1, 5]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / 22.5**0.5)


def test_every_method_is_on_the_scoreboard(benchmark: Any) -> None:
    assert {entry.method["name"] for entry in benchmark.ENTRIES} == set(METHODS)
