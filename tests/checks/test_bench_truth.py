"""The benchmark on known circuits, as it is run, on its smallest case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_bench_truth_ranks_the_edges_of_a_known_circuit_first(tmp_path: Path) -> None:
    """exact and acdc must; a method that asks for no metric cannot."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "benchmarks/truth/bench.py", "--cases", "tracr/repeats", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    rows = {(row["method"], row["ablation"]): row for row in written["environment"]["rows"]}
    for ablation in ("resample", "zero", "mean"):
        for method in ("exact (kl_divergence)", "acdc (kl_divergence)"):
            row = rows[method, ablation]
            assert row["average_precision"] == row["auroc"] == row["f1"] == 1
        assert rows["information-flow-routes (logit_diff)", ablation]["average_precision"] < 1
    (figure,) = written["figures"]
    assert (figure["name"], figure["value"]) == ("truth-exact-ap-min", 1)
    assert "tracr" in done.stdout
