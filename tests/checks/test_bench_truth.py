"""The benchmark on known circuits, as it is run, on some of its cases; and what it makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acdc.discovery import METHODS

ROOT = Path(__file__).resolve().parents[2]
CASES = ("hand-wired/induction", "gates", "tracr/repeats-the-last", "tracr/histogram", "siit/sum-of-two", "siit/parity")
FAST = ("exact", "acdc", "eap", "mask-ig", "node-ap", "information-flow-routes")
SEARCHES = ("exact (kl_divergence)", "acdc (kl_divergence)")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `make bench-truth` writes, of two processes' work."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    command = [sys.executable, "benchmarks/known_circuits.py", "--out", str(out), "--cases", *CASES, "--methods", *FAST]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import known_circuits

    return known_circuits


def of(written: Any, family: str) -> dict[str, dict[str, float]]:
    """circuit -> method -> average precision"""
    found: dict[str, dict[str, dict[str, float]]] = written["environment"]["average_precision"]
    return {where: by_method for where, by_method in found.items() if where.startswith(family)}


def test_exact_and_acdc_rank_every_true_edge_first_where_the_circuit_is_exact(written: Any) -> None:
    circuits = of(written, "hand-wired") | of(written, "tracr")
    assert len(circuits) == 2 + 2 * 3, "of a hand-wired model under two ablations, of two compiled ones under three"
    for where, by_method in circuits.items():
        for method in SEARCHES:
            assert by_method[method] >= 0.99, (where, method)
    figure = next(figure for figure in written["figures"] if figure["name"] == "truth-exact-ap-min")
    assert figure["value"] == min(by_method[method] for by_method in circuits.values() for method in SEARCHES)
    assert figure["how"].endswith("below 0.99: none")


def test_a_method_that_asks_for_no_metric_cannot_rank_them_first(written: Any) -> None:
    routes = [by_method["information-flow-routes (logit_diff)"] for by_method in of(written, "tracr").values()]
    assert max(routes) < 0.9


def test_integrated_gradients_rank_the_edges_of_trained_models_first(written: Any) -> None:
    trained = of(written, "siit")
    assert sorted(trained) == ["siit/parity (resample)", "siit/sum-of-two (resample)"]
    for by_method in trained.values():
        assert by_method["eap-ig-inputs (kl_divergence)"] >= 0.95
    figure = next(figure for figure in written["figures"] if figure["name"] == "truth-siit-best-ap")
    assert figure["value"] == 1
    assert "exact (kl_divergence)" in figure["how"]


def test_gates_are_apart_and_show_where_single_cuts_and_greedy_search_fail(written: Any) -> None:
    """Of an OR single cuts see one edge of five, a greedy search one of two ways. An AND hides nothing from them."""
    gates = of(written, "gates")
    exact, acdc = (gates["gates/or (resample)"][method] for method in SEARCHES)
    assert exact < acdc < 0.9
    assert [gates["gates/and (resample)"][method] for method in SEARCHES] == [1, 1]
    assert {line["family"] for line in written["environment"]["table"]} == {"hand-wired", "gates", "tracr", "siit"}


def test_what_it_prints_is_what_is_stored_and_shown_in_the_docs(written: Any) -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / "truth-cpu-2-cores.json").read_text(encoding="utf-8"))
    for where, by_method in of(written, "").items():
        for method, value in by_method.items():
            assert value == pytest.approx(of(stored, "")[where][method], abs=0.01), (where, method)


def test_every_method_takes_part(benchmark: Any) -> None:
    assert {entry.method for entry in benchmark.ENTRIES} == set(METHODS)


def test_a_median_is_of_all_runs_and_its_interval_of_cases(benchmark: Any) -> None:
    values = [0.1, 0.4, 0.5, 0.9, 1.0]
    once, ten_times = (benchmark.spread_of([[value] * runs for value in values]) for runs in (1, 10))
    assert once.median == 0.5
    assert 0.1 <= once.low < 0.5 < once.high <= 1.0
    assert ten_times == once, "more runs of the same cases say no more about other cases"
    alike = benchmark.spread_of([[0.7]] * 6)
    assert (alike.median, alike.low, alike.high) == (0.7, 0.7, 0.7)
    few = benchmark.spread_of([[0.2], [0.4]])
    assert (few.low, few.high) == (None, None)


def test_a_method_with_a_random_part_runs_at_every_seed(benchmark: Any) -> None:
    entry = next(entry for entry in benchmark.ENTRIES if entry.method == "edge-pruning")
    assert [run["mask_seed"] for run in entry.runs()] == list(benchmark.SEEDS)
