"""Find the circuit of every compiled program by cutting every edge, and store it: `make truth-tracr`."""

from __future__ import annotations

import json

import torch

from acdc.evaluation.truth import tracr
from acdc.evaluation.truth.cases import Case, cases, prompts_of
from acdc.evaluation.truth.exhaustive import find_truth
from acdc.graph import BoolMatrix, Graph
from acdc.models.architectures import wrap


def main() -> None:
    compiled = [case for case in cases() if case.family == "tracr"]
    found = {case.name.removeprefix("tracr/"): of_case(case) for case in compiled}
    (tracr.DATA / "truths.json").write_text(json.dumps(found, indent=1) + "\n")


@torch.no_grad()
def of_case(case: Case) -> dict[str, dict[str, list[str]]]:
    t = wrap(case.model(), split_position=case.split_position)
    rows = {}
    for ablation in case.ablations:
        truth = find_truth(t, prompts_of(case, t, ablation))
        rows[ablation] = {"true": names(t.graph, truth.true), "redundant": names(t.graph, truth.redundant)}
        n_redundant = len(rows[ablation]["redundant"])
        print(
            f"{case.name}, {ablation}: {len(rows[ablation]['true'])} of {t.graph.n_edges} true, {n_redundant} redundant"
        )
    return rows


def names(graph: Graph, mask: BoolMatrix) -> list[str]:
    return [graph.edge_name(edge) for edge in graph.edges() if mask[edge.sender, edge.receiver]]


if __name__ == "__main__":
    main()
