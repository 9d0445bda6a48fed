"""Find the circuit of every compiled program by cutting every edge, and store it: `make truth-tracr`."""

from __future__ import annotations

import json
from dataclasses import fields

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
        rows[ablation] = {field.name: t.graph.names_of(getattr(truth, field.name)) for field in fields(truth)}
        counts = ", ".join(f"{len(names)} {kind.replace('_', '-')}" for kind, names in rows[ablation].items())
        print(f"{case.name}, {ablation}: of {t.graph.n_edges} edges {counts}")
    return rows


if __name__ == "__main__":
    main()
