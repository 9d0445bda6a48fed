"""The command line on a real service and a real engine."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from acceptance_kit import Stack, assert_same, pairs, quick, slow, until
from transformers import AutoModelForCausalLM, AutoTokenizer

from acdc.circuit import Circuit
from acdc.cli.failures import CANCELLED, FAILED, REFUSED, WRONG


def test_stored_circuits_are_listed_shown_and_drawn(stack: Stack, circuit_id: str, tmp_path: Path) -> None:
    assert circuit_id in [row["id"] for row in stack.ask_json("circuits", "list", "--tag", "acceptance")]
    picture, curve = tmp_path / "graph.svg", tmp_path / "curve.svg"
    drawn = ["--svg", str(picture), "--curve-svg", str(curve)]
    said = stack.ask("circuits", "show", circuit_id, "--edges", "3", *drawn).output
    for word in (circuit_id, "faithfulness curve", "random circuits", "ablation resample", "k*", "by key/value head"):
        assert word in said
    for file in (picture, curve):
        ElementTree.parse(file)
    shown = stack.ask_json("circuits", "show", circuit_id)
    assert shown["summary"]["edges_total"] == 82
    assert shown["summary"]["report"] == shown["report"]


def test_a_full_evaluation_stands_on_the_circuits_card(stack: Stack, circuit_id: str, tmp_path: Path) -> None:
    words = ["--set", "evaluation=full", "--set", "evaluation.tests=30", "--wait"]
    said = stack.ask("circuits", "evaluate", circuit_id, *words).output
    parts = ("Under other ablations", "Completeness", "Minimality", "Hypothesis tests")
    assert [part for part in parts if part.lower() not in said] == []
    assert "sufficiency" in said
    page = tmp_path / "card.html"
    assert stack.ask("circuits", "show", circuit_id, "--card", str(page)).stdout == f"wrote {page}\n"
    assert [part for part in parts if f"<h3>{part}</h3>" not in page.read_text()] == []
    assert page.read_text().count("<svg") >= 3
    assert [part for part in parts if f"### {part}" not in stack.client.card(circuit_id)] == []


def test_circuit_is_evaluated_again(stack: Stack, circuit_id: str) -> None:
    said = stack.ask("circuits", "evaluate", circuit_id, "--set", "ablation=zero", "--wait").output
    for word in ("was evaluated again", "behaviour", "faithfulness curve", "ablation zero"):
        assert word in said
    edited = stack.ask_json("circuits", "evaluate", circuit_id, "--add", "mlp0", "--remove", "embed->logits", "--wait")
    [(edited_id, summary)] = edited["circuits"].items()
    assert edited_id != circuit_id
    assert summary["report"]["kept"]


def test_circuit_goes_out_and_comes_back(stack: Stack, circuit_id: str, tmp_path: Path) -> None:
    file, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    stack.ask("circuits", "export", circuit_id, "--out", str(file))
    copy = stack.ask_json("circuits", "import", str(file), "--name", "copy")
    stack.ask("circuits", "export", copy["id"], "--out", str(again))
    assert file.read_bytes() == again.read_bytes()
    for format in ("json", "csv", "neuronpedia"):
        out = tmp_path / format
        assert stack.ask_json("circuits", "export", circuit_id, "--format", format, "--out", str(out))["bytes"] > 100
    stack.ask("circuits", "delete", copy["id"], "--yes")
    stack.ask("circuits", "show", copy["id"], status=WRONG)


def test_hand_written_circuit_is_judged(stack: Stack, model: Path, tmp_path: Path) -> None:
    sets = ["--set", f"task={json.dumps(quick(model)['task'])}", "--set", "evaluation.grid=[1.0]", "--wait"]
    said = stack.ask_json("circuits", "import", "--node", "0.1", "--node", "1.2", "--model", f"path:{model}", *sets)
    [summary] = said["circuits"].values()
    assert summary["heads"] == ["0.1", "1.2"]


def test_prompt_is_tried(stack: Stack, circuit_id: str) -> None:
    said = stack.ask("try", circuit_id, "ijklefgh", "--corrupt", "zzzzefgh", "--top", "3").stdout
    assert all(word in said for word in ("model", "circuit", "complement", "random", "resample"))
    [result] = stack.ask_json("try", circuit_id, "ijklefgh", "--top", "3")["results"]
    assert len(result["data"]["columns"]["model"]) == 3


def test_task_check_shows_the_metric_of_every_usable_row(stack: Stack, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    rows = pairs(3)
    rows[1]["corrupt"] += "gg"
    file.write_text(json.dumps(rows))
    process = stack.command(
        "task", "check", str(file), "--model", f"path:{model}", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    answer, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    data = json.loads(answer)
    llama, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    right, wrong = (tokenizer.convert_tokens_to_ids(rows[0][key]) for key in ("answers", "wrong"))
    with torch.no_grad():
        logits = llama(torch.tensor([tokenizer.encode(rows[0]["clean"])])).logits[0, -1]
    assert (data["metric"], data["n_usable"]) == ("logit_diff", 2)
    assert data["rows"][0]["metric"] == pytest.approx(float(logits[right] - logits[wrong]), rel=1e-4)
    assert data["rows"][1]["metric"] is None
    assert data["rows"][2]["metric"] is not None


def test_task_check_ends_with_2_where_too_few_rows_are_left(stack: Stack, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([{**row, "group": "g"} for row in pairs(3)]))
    process = stack.command("task", "check", str(file), "--model", f"path:{model}", stdout=subprocess.PIPE)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "3 of 3 rows can be used, of 1 group" in said.decode()
    assert "too few" in said.decode()


def test_a_circuit_tells_of_its_evaluations_and_a_job_of_its_circuit(stack: Stack, circuit_id: str) -> None:
    job = stack.succeeded(stack.client.evaluate(circuit_id, {"ablation": "zero"}))
    shown = stack.ask("circuits", "show", circuit_id).stdout
    assert f"`acdc jobs watch {job.id}` shows it" in shown
    assert "ablation zero" in shown.partition("evaluated  ")[2]
    (evaluation,) = (one for one in stack.client.evaluations(circuit_id) if one.job_id == job.id)
    told = stack.ask_json("circuits", "show", circuit_id)["evaluations"]
    assert {"id": evaluation.id, "job": job.id, "created_at": evaluation.created_at} in told
    (row,) = (line for line in stack.ask("jobs", "list").stdout.splitlines() if line.startswith(job.id))
    assert circuit_id in row
    assert "progress:" not in stack.ask("jobs", "show", job.id).stdout


def test_a_job_without_a_log_is_said_to_have_none(stack: Stack, circuit_id: str) -> None:
    job = stack.client.try_prompt(circuit_id, "ijklefgh", "efg")
    stack.failed(job)
    has_log = bool(stack.client.logs(job.id))
    assert ("has more" in stack.ask("jobs", "watch", job.id, status=3).stderr) == has_log
    logged = stack.ask("jobs", "logs", job.id)
    assert bool(logged.stdout) == has_log
    assert ("has logged nothing" in logged.stderr) != has_log


def test_submit_waits_for_the_circuit(stack: Stack, model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(quick(model)))
    said = stack.ask("submit", str(spec), "--wait", "--method", "eap", "--name", "waited for").output
    for word in ("succeeded", "found with eap", "faithfulness curve", "graph.svg"):
        assert word in said


def test_ctrl_c_on_a_running_search_cancels_it(stack: Stack, model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(slow(model)))
    words = ["--url", stack.url, "submit", str(spec), "--wait", "--name", "ctrl-c"]
    process = stack.command(*words, stderr=subprocess.PIPE)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, b"")
    assert any(b"acdc" in line and b"\xe2\x80\xa6" in line for line in lines), "the search never began"
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == CANCELLED, said
    [job] = [job for job in stack.client.jobs() if job.name == "ctrl-c"]
    assert stack.client.wait(job.id).state == "cancelled"
    assert "Traceback" not in said


def test_local_run_stops_at_ctrl_c_and_resumes_to_the_same_circuit(
    stack: Stack, model: Path, undisturbed: Circuit, tmp_path: Path
) -> None:
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(json.dumps(slow(model)))
    words = ["run", str(spec), "--out", str(out)]
    first = stack.command(*words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until("a checkpoint", (out / "checkpoint.safetensors").exists)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == CANCELLED, said.decode()
    assert b"--resume` goes on" in said
    second = stack.command(*words, "--resume", "--json", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    answer, said = second.communicate(timeout=120)
    assert second.returncode == 0, said.decode()
    [result] = json.loads(answer)["results"]
    assert_same(Circuit.load(Path(result["circuit"])), undisturbed)
    assert not (out / "checkpoint.safetensors").exists()
    for picture in result["pictures"]:
        ElementTree.parse(picture)
    lines = (out / "log.txt").read_text()
    assert "Traceback" not in lines


def test_local_run_has_a_directory_of_its_own_which_is_refused_to_another_job(
    stack: Stack, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.json").write_text(json.dumps(slow(model)))
    first = stack.command("run", "spec.json", stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    until("a checkpoint", lambda: list(Path("acdc-out").glob("discover-custom-acdc-*/checkpoint.safetensors")))
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert b"`acdc run spec.json --resume` goes on" in said
    Path("other.json").write_text(json.dumps(quick(model)))
    [mine] = Path("acdc-out").iterdir()
    refused = stack.command("run", "other.json", "--out", str(mine), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    _, said = refused.communicate(timeout=60)
    assert (refused.returncode, b"--resume" in said) == (REFUSED, False)
    assert b"keeps the work of another job" in said
    assert (mine / "checkpoint.safetensors").exists()


def test_plan_of_an_exact_search_can_be_measured(stack: Stack, model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({**slow(model), "method": {"name": "acdc", "thresholds": [0.1, 0.01]}}))
    process = stack.command("plan", str(spec), "--measure", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    answer, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    [search] = [phase for phase in json.loads(answer)["phases"] if phase["name"] == "search"]
    assert search["seconds"] > 0
    assert search["how"].endswith(", over 2 thresholds")
    assert "measured at" in search["how"]


def test_only_exact_searches_are_measured(stack: Stack, model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(quick(model)))
    process = stack.command("plan", str(spec), "--measure", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode == WRONG
    assert b"--measure is for searches with method acdc" in said


def test_plan_that_cannot_be_measured_says_every_fault(stack: Stack, model: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    rows = [{**row, "corrupt": row["corrupt"] + "a"} for row in pairs(2)]
    spec.write_text(json.dumps({**slow(model), "task": {"name": "custom", "pairs": rows, "prompts": 1, "held_out": 1}}))
    process = stack.command("plan", str(spec), "--measure", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=120)
    assert process.returncode == FAILED, said.decode()
    for words in (b"0 of 2", b"row 1:", b"row 2:", b"tokens"):
        assert words in said
