"""Find the circuit of every compiled program by cutting every edge, and store it: `make truth-tracr`."""

from __future__ import annotations

import json

import torch

from acdc.evaluation.truth import tracr
from acdc.evaluation.truth.cases import Case, cases, prompts_of
from acdc.evaluation.truth.exhaustive import find_truth


def main() -> None:
    compiled = [case for case in cases() if case.family == "tracr"]
    found = {case.name.removeprefix("tracr/"): of_case(case) for case in compiled}
    (tracr.DATA / "truths.json").write_text(json.dumps(found, indent=1) + "\n")


@torch.no_grad()
def of_case(case: Case) -> dict[str, dict[str, list[str]]]:
    t = case.transformer()
    rows = {}
    for ablation in case.ablations:
        truth = find_truth(t, prompts_of(case, t, ablation))
        rows[ablation] = {"true": t.graph.names_of(truth.true), "redundant": t.graph.names_of(truth.redundant)}
        n_redundant = len(rows[ablation]["redundant"])
        print(
            f"{case.name}, {ablation}: {len(rows[ablation]['true'])} of {t.graph.n_edges} true, {n_redundant} redundant"
        )
    return rows


if __name__ == "__main__":
    main()
