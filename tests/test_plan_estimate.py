"""What a plan says, against sums done by hand."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from acdc.challenge_settings import Runs, runs_of
from acdc.discovery.nested_pruning import WARM_STEPS
from acdc.evaluation.curve import sizes_of
from acdc.evaluation.judging import Cost
from acdc.graph import Graph, GraphShape
from acdc.models.catalogue import CATALOGUE, Size
from acdc.models.inventory import METADATA, LocalModel
from acdc.plan import (
    ACDC_EDGE,
    ACDC_TESTED,
    BISECTION,
    DOUBTED_TESTS,
    MASKED,
    QK_ANEW,
    UNCERTAINTY,
    ModelFacts,
    Plan,
    Speed,
    cached_directory,
    circuits_judged,
    doubts_now,
    estimate,
    facts_of,
    forward_flops,
    measure_speed,
    tokens_per_prompt,
)
from acdc.spec import DiscoverSpec, parse_job

SIZE = Size(GraphShape(2, 4, 4), d_model=8, d_mlp=32, vocab_size=100, n_parameters=10_000)
TESTED = Graph(SIZE.shape).n_edges * ACDC_TESTED
FACTS = ModelFacts(SIZE, download_bytes=5_000_000, converts=True, stored_bytes=40_000)
SPEED = Speed(1e6, "a test")
N_PAIRS = 12
PAIRS = [{"clean": "x" * 36, "corrupt": "y" * 36, "answers": " a", "wrong": " b"}] * N_PAIRS  # 9 tokens and BOS
FORWARD = 2 * (10_000 - 800) * 10 + 2 * 800


def plan(facts: ModelFacts | None = FACTS, speed: Speed = SPEED, **fields: Any) -> Plan:
    task = {"name": "custom", "pairs": PAIRS, "prompts": 8, "held_out": 4}
    return estimate(parse_job({"task": task, **fields}), facts, speed)


def seconds(plan: Plan, phase: str) -> float:
    value = next(p.seconds for p in plan.phases if p.name == phase)
    assert value is not None
    return value


def test_a_forward_is_two_operations_per_parameter_and_token_with_one_unembedding() -> None:
    assert forward_flops(FACTS, 10) == FORWARD
    untied = ModelFacts(SIZE, 0, False, 0, n_tables=2)
    assert forward_flops(untied, 10) == 2 * (10_000 - 1600) * 10 + 2 * 800


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ({"name": "eap"}, 2 + 3),
        ({"name": "eap-ig-inputs", "steps": 7}, 2 + 7 * 3),
        ({"name": "eap-ig-activations", "steps": 4}, 2 + 4 * (2 * 2 + 1) * 3),
        ({"name": "eap-ig-qk", "steps": 7}, 3 + 7 * 3 + 2 * (4 + 4) * QK_ANEW),
        ({"name": "mask-ig", "steps": 7}, 2 + 7 * 3),
        ({"name": "node-ap"}, 2 + 3),
        ({"name": "node-ap-ig", "steps": 7}, 2 + 7 * 3),
        ({"name": "relp"}, 2 + 3),
        ({"name": "gim"}, 2 + 3),
        ({"name": "information-flow-routes"}, 1),
        ({"name": "edge-pruning", "steps": 50}, 2 + 50 * MASKED * 3),  # all prompts fit into one batch
        ({"name": "nested-pruning", "steps": 50}, 2 * MASKED + 2 + WARM_STEPS * 3 + 50 * MASKED * 3),
        ({"name": "nested-pruning", "examples": 2}, 2 * MASKED + 2 + WARM_STEPS * 3 + 300 * 2 / 8 * MASKED * 3),
        ({"name": "ensemble", "methods": ["eap", {"name": "mask-ig", "steps": 7}]}, 2 + 3 + 2 + 7 * 3),
        ({"name": "exact"}, 2 + Graph(SIZE.shape).n_edges / 2),
        (
            {"name": "exact", "receivers": 9},
            2 + round(Graph(SIZE.shape).n_edges * 9 / Graph(SIZE.shape).n_receivers) / 2,
        ),
        ({"name": "acdc", "thresholds": [0.1, 0.2]}, 2 + round(TESTED * 2) * ACDC_EDGE),
        ({"name": "acdc", "warm_start": 0.5}, 2 + round(TESTED / 2) * ACDC_EDGE),
        ({"name": "acdc", "edges": 100}, 2 + round(TESTED * BISECTION) * ACDC_EDGE),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_search_takes_the_passes_of_its_method(method: dict[str, Any], passes: float) -> None:
    assert seconds(plan(method=method), "search") == pytest.approx(8 * passes * FORWARD / 1e6)


OBJECTIVES = ["logit_diff", "kl_divergence"]
N_EDGES = Graph(SIZE.shape).n_edges
GRID = {"grid": [0.1, 0.2, 0.5], "rules": ["signed", "absolute"], "random_circuits": 5, "band_circuits": 2}


def test_evaluation_of_a_chosen_size_is_the_curve_the_kept_circuit_and_the_random_ones() -> None:
    made = plan(evaluation=GRID, selection={"size": 4})
    both = 3 + len(sizes_of(GRID["grid"], N_EDGES)) * 2  # model, empty and kept circuit; then the curve
    masked = both * (8 + 4) + (3 * 2 + 5) * 4  # matched to each grid point, and to the kept circuit
    masked += (1 + 3) * 4  # its complement; and model, empty and kept circuit under mean ablation, prepared by itself
    assert seconds(made, "evaluate") == pytest.approx((2 * 12 + 8 + 2 * 4 + 3 * masked) * FORWARD / 1e6)


def test_every_part_of_a_full_evaluation_is_told_before() -> None:
    standard, full = (plan(evaluation={**GRID, **more}, selection={"size": 4}) for more in ({}, {"extent": "full"}))
    random = 100 - 5 + 100  # of the tests, and what is left without each
    knock_outs = 2 * (20 + SIZE.shape.n_layers + 25)
    minimality = N_EDGES + 2 * 100  # the graph has fewer than 300
    more = (random + knock_outs + minimality) * 4 * 3 * FORWARD / 1e6
    assert seconds(full, "evaluate") - seconds(standard, "evaluate") == pytest.approx(more)


def test_an_ablation_besides_costs_its_own_runs_and_none_costs_nothing() -> None:
    alone, besides = (plan(evaluation={**GRID, "also_under": u}, selection={"size": 4}) for u in ([], ["zero"]))
    assert seconds(besides, "evaluate") - seconds(alone, "evaluate") == pytest.approx((2 + 3 * 3) * 4 * FORWARD / 1e6)


def test_random_circuits_are_judged_once_and_not_at_every_point() -> None:
    few, many = (plan(evaluation={**GRID, "random_circuits": n}, selection={"size": 4}) for n in (5, 25))
    assert seconds(many, "evaluate") - seconds(few, "evaluate") == pytest.approx(20 * 4 * 3 * FORWARD / 1e6)


def test_looking_for_k_star_costs_more_than_a_chosen_size() -> None:
    chosen, looked_for = plan(evaluation=GRID, selection={"size": 4}), plan(evaluation=GRID)
    assert seconds(looked_for, "evaluate") >= seconds(chosen, "evaluate")


def test_decisions_are_judged_without_a_curve_and_the_ranking_of_several_thresholds_with_one() -> None:
    one, three = (circuits_judged_by({"name": "acdc", "thresholds": t}) for t in ([0.1], [0.1, 0.2, 0.3]))
    assert one == Cost(3, 3 + 20 + 1 + 3)  # model, empty and kept circuit; random ones; complement; under mean
    ranking = circuits_judged_by({"name": "eap"})
    assert three == Cost(3 * one.search + ranking.search, 3 * one.held_out + ranking.held_out)


def circuits_judged_by(method: dict[str, Any]) -> Cost:
    spec = parse_job({"method": method})
    assert isinstance(spec, DiscoverSpec)
    return circuits_judged(spec, Graph(SIZE.shape))


def test_search_with_several_objectives_takes_the_passes_of_each() -> None:
    one, two = (plan(method={"name": "eap-ig-inputs", "objective": o}) for o in (["logit_diff"], OBJECTIVES))
    assert seconds(two, "search") == pytest.approx(2 * seconds(one, "search"))


def test_the_default_job_is_planned_in_hours_not_in_days() -> None:
    spec = parse_job({"task": "ioi"})
    made = estimate(spec, facts_of(spec.model), Speed(2e10, "two slow cores"))
    assert made.seconds is not None
    assert made.seconds < 6 * 3600


def test_the_total_is_the_sum_of_the_phases_and_flops_are_search_and_evaluation() -> None:
    made = plan()
    assert made.seconds == pytest.approx(sum(seconds(made, p.name) for p in made.phases if p.name != "download"))
    assert made.flops == pytest.approx((seconds(made, "search") + seconds(made, "evaluate")) * 1e6)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"method": {"name": "eap-ig-inputs", "steps": 5}}, {"method": {"name": "eap-ig-inputs", "steps": 6}}),
        ({"evaluation": {"grid": [0.1]}}, {"evaluation": {"grid": [0.1, 0.2]}}),
        ({"evaluation": {"random_circuits": 1}}, {"evaluation": {"random_circuits": 2}}),
        ({"evaluation": {"rules": ["signed"]}}, {"evaluation": {"rules": ["signed", "absolute"]}}),
        ({"compute": {"dtype": "float32"}}, {"compute": {"dtype": "float64"}}),
        (
            {"task": {"name": "custom", "pairs": PAIRS[:6], "prompts": 8, "held_out": 4}},
            {"task": {"name": "custom", "pairs": PAIRS, "prompts": 8, "held_out": 4}},
        ),
    ],
)
def test_asking_for_more_never_takes_less_time(less: dict[str, Any], more: dict[str, Any]) -> None:
    few, many = (parse_job({"task": {"name": "custom", "pairs": PAIRS}, **fields}) for fields in (less, more))
    low, high = estimate(few, FACTS, SPEED).seconds, estimate(many, FACTS, SPEED).seconds
    assert low is not None
    assert high is not None
    assert low < high


def test_memory_and_disk_grow_with_what_is_asked_for() -> None:
    def memory(**fields: Any) -> int:
        n_bytes = plan(**fields).memory.n_bytes
        assert n_bytes is not None
        return n_bytes

    one, two = ({"batch_tokens": n} for n in (64, 128))
    streams, logits = 8 * 2 * 64 * 8 * 4, (int(12.8 * 100) - int(6.4 * 100)) * 8
    masked = (Graph(SIZE.shape).n_senders + 2 * (SIZE.shape.n_heads + 2 * SIZE.shape.n_kv_heads)) * 64 * 8 * 4
    assert memory(compute=two) - memory(compute=one) == streams + logits + masked
    small, large = ({"memory_bytes": n} for n in (2**24, 2**25))
    assert memory(compute=large) == memory(compute=small)  # the masked forward of a batch is smaller than both
    for method in ("acdc", {"name": "ensemble", "methods": ["eap", "exact"]}):
        assert memory(compute=large, method=method) - memory(compute=small, method=method) == 2**24
    two, four = (memory(method={"name": "nested-pruning", "examples": n}) for n in (2, 4))
    assert 2 * two - four == memory(method="eap")  # the memory of a step grows with its prompts
    assert memory(method="edge-pruning") > four
    few, many = ({"name": "ioi", "prompts": n} for n in (32, 64))
    assert memory(task=many) > memory(task=few)
    cells = Graph(SIZE.shape).n_senders * Graph(SIZE.shape).n_receivers
    assert plan().disk.n_bytes == 5_000_000 + 40_000 + 2 * cells * 6
    assert plan(method={"name": "acdc", "thresholds": [1, 2, 3]}).disk.n_bytes == 5_040_000 + 4 * cells * 6


def test_nothing_is_guessed_about_a_model_that_nobody_has_seen() -> None:
    made = plan(None, model="hub:some/model")
    assert made.seconds is None
    assert made.memory.n_bytes is None
    assert made.disk.n_bytes is None
    assert made.flops is None
    assert any("hub:some/model" in line for line in made.unknown)
    assert all("until the model was fetched" in phase.how for phase in made.phases)


def test_an_unmeasured_network_leaves_out_the_download_and_says_so() -> None:
    made = plan()
    assert made.phases[0].seconds is None
    assert made.seconds is not None
    assert "5 MB" in made.unknown[0]
    assert plan(replace(FACTS, download_bytes=0)).phases[0].seconds == 0


def test_a_gpu_is_not_passed_off_as_measured() -> None:
    assert any("GPU" in line for line in plan(compute={"device": "cuda"}).unknown)
    assert not any("GPU" in line for line in plan().unknown)


def test_an_evaluation_searches_nothing_and_a_try_takes_its_own_prompt() -> None:
    task = {"name": "custom", "pairs": PAIRS, "prompts": 8, "held_out": 4}
    evaluated = estimate(parse_job({"kind": "evaluate", "circuit": "c1", "task": task}), FACTS, SPEED)
    assert seconds(evaluated, "search") == 0
    assert seconds(evaluated, "evaluate") == seconds(plan(selection={"size": 4}), "evaluate")
    behind = parse_job({"task": task})
    tried = parse_job({"kind": "try", "circuit": "c1", "prompt": "z" * 36, "corrupt": "y" * 36})
    assert seconds(estimate(tried, FACTS, SPEED, behind), "evaluate") == pytest.approx((2 + 3 * 3) * FORWARD / 1e6)
    without = parse_job({"kind": "try", "circuit": "c1", "prompt": "z" * 36})
    assert seconds(estimate(without, FACTS, SPEED, behind), "evaluate") == pytest.approx(
        (8 + 2 + 3 * 3) * FORWARD / 1e6
    )


def test_chat_messages_have_a_length() -> None:
    chat = {
        "clean": [{"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "x" * 19}],
        "answers": "a",
    }
    spec = parse_job({"task": {"name": "custom", "pairs": [chat]}})
    assert tokens_per_prompt(spec)[0] == 11


def test_a_plan_is_plain_json() -> None:
    data = json.loads(json.dumps(plan().to_dict(), allow_nan=False))
    assert data["seconds"] == plan().seconds
    assert [phase["name"] for phase in data["phases"]] == ["download", "convert", "load", "search", "evaluate"]
    assert all(phase["how"] for phase in data["phases"])


def test_what_the_thresholds_of_acdc_leave_to_test_is_not_passed_off_as_known() -> None:
    acdc, eap = plan(method="acdc"), plan(method="eap")
    assert (acdc.doubts, acdc.uncertainty) == ((DOUBTED_TESTS,), None)
    assert (eap.doubts, eap.uncertainty) == ((), UNCERTAINTY)


@pytest.mark.parametrize(("load", "doubts"), [(0.9, []), (1.1, ["its load is 1.1, with 2 CPUs"])])
def test_a_plan_made_beside_other_work_is_doubted(
    load: float, doubts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    said = doubts_now()
    assert [line.partition(": ")[2] for line in said] == doubts
    made = estimate(parse_job({"method": "eap"}), FACTS, SPEED, doubts=said)
    assert made.doubts == tuple(said)
    assert (made.uncertainty is None) == bool(doubts)


def test_speed_is_measured_quickly() -> None:
    assert measure_speed(0.01).flops_per_s > 1e8


def test_speed_is_the_same_while_other_programs_use_every_cpu() -> None:
    alone = measure_speed(0.1).flops_per_s
    spinning = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with contextlib.ExitStack() as others:
        for _ in range(2 * (os.cpu_count() or 1)):
            other = others.enter_context(subprocess.Popen(spinning, stdout=subprocess.PIPE))
            others.callback(other.kill)
            assert other.stdout is not None
            other.stdout.readline()  # it runs
        assert 1 / UNCERTAINTY < measure_speed().flops_per_s / alone < UNCERTAINTY


def test_facts_come_from_the_catalogue_or_from_the_directory_that_holds_the_model(tmp_path: Path) -> None:
    entry = CATALOGUE["smollm2-135m-instruct-q4"]
    facts = facts_of("smollm2-135m-instruct-q4")
    assert facts is not None
    assert (facts.size, facts.download_bytes, facts.converts) == (entry.size, 93_000_000, True)
    assert facts_of(entry.reference) == facts
    assert facts_of("hub:some/model") is None
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 123)
    local = facts_of(f"path:{tmp_path}")
    assert local is not None
    assert (local.stored_bytes, local.download_bytes, local.converts, local.n_tables) == (123, 0, False, 1)
    assert facts_of("hub:some/model", tmp_path) == local
    assert facts_of(f"path:{tmp_path / 'absent'}") is None


def test_a_path_from_the_home_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 50}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert facts_of("path:~/m") == facts_of(f"path:{tmp_path / 'm'}") is not None


def test_a_model_in_the_cache_is_neither_fetched_nor_converted_again(tmp_path: Path) -> None:
    held = tmp_path / "models" / "key"
    held.mkdir(parents=True)
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 50}
    (held / "config.json").write_text(json.dumps(config))
    model = LocalModel("key", "hub:some/model", "pin", str(held), "Some", "gpt2", 100, "f", "t", None, None, 0)
    (held / METADATA).write_text(json.dumps(asdict(model)))
    assert cached_directory(tmp_path, "hub:some/model") == held
    assert cached_directory(tmp_path, "hub:other/model") is None
    facts = facts_of("hub:some/model", cached_directory(tmp_path, "hub:some/model"))
    assert facts is not None
    assert (facts.download_bytes, facts.converts) == (0, False)


def test_a_challenge_costs_its_settings_and_searches() -> None:
    behind = parse_job({"task": {"prompts": 8, "held_out": 4}, "method": "eap", "selection": {"size": 4}})
    spec = parse_job({"kind": "challenge", "circuit": "cir_1", "seeds": 1, "resamples": 1, "controls": False})
    assert isinstance(behind, DiscoverSpec)
    facts = ModelFacts(SIZE, 0, False, 0)
    made = estimate(spec, facts, Speed(1e6, "test"), behind=behind)
    runs = runs_of(spec, behind, "signed")
    # own; ablation 2, corruption 1, metric 3, rule 1, prompts 1, resample 1; zero, mean and the flip, each with KL.
    # eap refuses KL: once alone and in these three; and by another rule the search is the same
    assert runs == Runs(settings=13, searches=8, found=8)
    own = estimate(behind, facts, Speed(1e6, "test"))
    assert seconds(made, "search") == pytest.approx(runs.searches * seconds(own, "search"))
    fewer = estimate(parse_job({**spec.model_dump(), "search": False}), facts, Speed(1e6, "test"), behind=behind)
    assert seconds(fewer, "search") == 0
    assert 0 < seconds(fewer, "evaluate") < seconds(made, "evaluate")
