from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from acdc.circuit import Choices, Circuit, ModelCard, Provenance, Run, Selected, TaskCard
from acdc.cli.app import app
from acdc.cli.failures import CANCELLED, NO_ANSWER, READER_GONE, WRONG
from acdc.cli.following import follow
from acdc.cli.processes import json_lines
from acdc.client import Client
from acdc.errors import Cancelled, ServiceError
from acdc.graph import Graph, GraphShape
from acdc.models.inventory import Inventory, LocalModel
from acdc.spec import parse_job
from workers import rehearsal

Invoke = Callable[..., Any]


def invoke(*words: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, list(words), input=stdin)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real service without workers, as a user starts it."""
    data = tmp_path_factory.mktemp("service")
    command = [
        sys.executable,
        "-m",
        "acdc.cli",
        "serve",
        "--port",
        "0",
        "--workers",
        "0",
        "--data-dir",
        str(data),
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_help_answers_at_once_and_without_torch() -> None:
    code = (
        "import sys, time; begin = time.perf_counter()\n"
        "from acdc.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "seconds = time.perf_counter() - begin\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch'\n"
        "assert seconds < 3, seconds\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "submit" in done.stdout


def test_a_spec_with_ten_faults_shows_ten(tmp_path: Path) -> None:
    spec = {
        "model": "nope",
        "task": {"name": "ioi", "prompts": 0, "held_out": 0, "seed": -1},
        "metric": "guess",
        "seed": -1,
        "compute": {"dtype": "int4", "device": "abacus"},
        "evaluation": {"random_circuits": -1},
        "nonsense": 1,
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    result = invoke("submit", str(file))
    assert result.exit_code == WRONG
    assert result.stderr.count("  - ") == 10
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"", b"[1, 2]", b'{"task": '])
def test_a_file_that_holds_no_spec_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "spec.yaml"
    file.write_bytes(content)
    result = invoke("plan", str(file))
    assert result.exit_code == WRONG
    assert "spec.yaml" in result.stderr


def test_a_directory_is_no_spec(tmp_path: Path) -> None:
    result = invoke("plan", str(tmp_path))
    assert result.exit_code == WRONG
    assert "is a directory" in result.stderr


def test_a_word_that_is_neither_file_nor_task_lists_the_tasks() -> None:
    result = invoke("plan", "nonsense")
    assert result.exit_code == WRONG
    assert "ioi" in result.stderr


@pytest.mark.parametrize("command", ["run", "submit", "plan"])
def test_a_role_that_the_task_has_not_is_refused_before_anything_is_done(command: str) -> None:
    result = invoke(command, "ioi", "--set", "positions=subject")
    assert result.exit_code == WRONG
    assert "task 'ioi' has no role 'subject'" in " ".join(result.stderr.split())


def test_options_are_laid_over_a_spec_from_stdin() -> None:
    from acdc.cli.spec_source import overlay

    assert overlay({}, ["method.steps=5"]) == {"method": {"steps": 5}}
    assert overlay({"task": "ioi"}, ["task.prompts=3"])["task"] == {"name": "ioi", "prompts": 3}
    result = invoke("plan", "-", "--set", "method.steps=2", "--json", stdin="task: ioi")
    assert result.exit_code == 0, result.stderr
    assert "2 forward-backward" in result.stdout


def test_every_bad_set_option_is_reported() -> None:
    result = invoke("plan", "ioi", "--set", "nonsense", "--set", "=1", "--set", "seed.deep=[")
    assert result.stderr.count("  - ") == 3


@pytest.mark.parametrize("words", [["models"], ["tasks"], ["methods"], ["plan", "ioi"]])
def test_what_needs_no_service_answers_in_json_and_in_words(words: list[str]) -> None:
    assert json.loads(invoke(*words, "--json").stdout)
    assert "\x1b" not in invoke(*words).stdout


def test_without_a_service_the_way_to_start_one_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        result = invoke("--url", url, "jobs", "list")
        with Client(url) as client, pytest.raises(ServiceError, match="acdc serve"):
            client.jobs()
    assert result.exit_code == NO_ANSWER
    assert "acdc serve" in result.stderr


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = invoke("serve", "--port", port, "--data-dir", str(tmp_path))
    assert result.exit_code == NO_ANSWER
    assert "in use" in result.stderr
    assert "--port" in result.stderr


def test_a_job_is_submitted_listed_shown_and_cancelled(service: str) -> None:
    job = json.loads(invoke("--url", service, "submit", "ioi", "--name", "mine", "--json").stdout)
    assert (job["state"], job["name"]) == ("queued", "mine")
    for words in (["list"], ["show", job["id"]], ["logs", job["id"]]):
        result = invoke("--url", service, "jobs", *words, "--json")
        assert result.exit_code == 0, result.stderr
        json.loads(result.stdout)
        assert invoke("--url", service, "jobs", *words).exit_code == 0
    cancelled = json.loads(invoke("--url", service, "jobs", "cancel", job["id"], "--json").stdout)
    assert cancelled["state"] == "cancelled"
    again = json.loads(invoke("--url", service, "jobs", "retry", job["id"], "--json").stdout)
    assert again["retry_of"] == job["id"]
    found = invoke("--url", service, "circuits", "list", "--task", "successor", "--json")
    assert json.loads(found.stdout) == []  # the service is shared: no test here stores a circuit of this task


def test_a_job_that_is_not_there_is_told_as_json_too(service: str) -> None:
    result = invoke("--url", service, "jobs", "show", "job_nope", "--json")
    assert result.exit_code == WRONG
    assert json.loads(result.stderr)["error"]["code"] == "not_found"


def test_way_to_try_again_fits_a_service_that_ends_with_the_command(service: str) -> None:
    with Client(service) as client:
        job = client.cancel(client.submit({"task": "ioi"}).id)
        with pytest.raises(Cancelled, match=f"`acdc jobs retry {job.id}` starts again"):
            follow(client, job)
        with pytest.raises(Cancelled, match="`acdc demo` starts again"):
            follow(client, job, again="acdc demo")


def test_a_reader_that_goes_away_is_no_bug() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "acdc.cli", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), said) == (READER_GONE, b"")


@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.4, 0.7, 1.0])
def test_ctrl_c_at_once_is_no_bug_either(after_s: float, tmp_path: Path) -> None:
    """Whatever is being imported: the moments spread over it."""
    command = [
        sys.executable,
        "-c",
        "from acdc.cli import interrupts, main; interrupts.end_at_once(); print(flush=True); main()",
        "run",
        "ioi",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == CANCELLED, said
    assert "Traceback" not in said
    assert "bug" not in said


def test_ctrl_c_while_waiting_cancels_the_job(service: str) -> None:
    command = [sys.executable, "-m", "acdc.cli", "--url", service, "submit", "ioi", "--wait", "--name", "ctrl-c"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with Client(service) as client:
        assert "queued" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(20) == CANCELLED, said
        (job,) = [job for job in client.jobs() if job.name == "ctrl-c"]
        assert job.state == "cancelled"
    assert "Traceback" not in said
    process.stderr.close()


def _wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_service(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "acdc.cli", "serve", "--port", "0", "--data-dir", str(tmp_path), "--json"]
    log = tmp_path / "log"
    with log.open("w") as stream, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream) as process:
        assert process.stdout is not None
        process.stdout.readline()
        family = psutil.Process(process.pid)
        assert _wait_until(lambda: bool(family.children(recursive=True))), "no worker was started"
        children = family.children(recursive=True)
        os.kill(process.pid, number)
        process.wait(30)
    assert not list(psutil.wait_procs(children, timeout=20)[1])
    assert "a worker ended" not in log.read_text()


def found_circuit(spec: dict[str, Any]) -> Circuit:
    """A circuit as the job with `spec` would have found it."""
    from acdc.spec import parse_job

    graph = Graph(GraphShape(2, 2, 2))
    kept = graph.connected(graph.legal)
    provenance = Provenance(
        ModelCard("gemma3-270m-q4", "Tiny", "llama", "f" * 64, "t" * 64, 1000, None, None),
        TaskCard("greater_than", "01", "a" * 64, 3, 1, 0, 0, ("a",), ("b",)),
        Choices("prob_diff", "prob_diff", "mean per role", "eap", {}),
        Run("0.1.0", 1, "2", "5", "float32", "cpu", 1, 0, 1.0, 1, spec=json.loads(parse_job(spec).canonical_json)),
    )
    scores = graph.legal.astype("float32")
    return Circuit(graph, scores, graph.legal, kept, Selected("signed", None, int(kept.sum())), provenance, None)


FOUND_BY = {
    "model": "gemma3-270m-q4",
    "task": {"name": "greater_than", "prompts": 7},
    "metric": "prob_diff",
    "ablation": {"kind": "mean"},
    "evaluation": {"grid": [0.1]},
}


@pytest.mark.parametrize("command", ["evaluate", "submit"])
def test_an_evaluation_asks_for_what_was_said_and_inherits_the_rest(service: str, tmp_path: Path, command: str) -> None:
    with Client(service) as client:
        circuit_id = client.import_file(found_circuit(FOUND_BY).to_bytes()).id
    sets = ["task.seed=7", "ablation.mean_over=all", "evaluation.random_circuits=3"]
    words = ["circuits", "evaluate", circuit_id]
    if command == "submit":
        file = tmp_path / "spec.yaml"
        file.write_text(f"kind: evaluate\ncircuit: {circuit_id}\n")
        words = ["submit", str(file)]
    result = invoke("--url", service, *words, *(word for text in sets for word in ("--set", text)), "--json")
    spec = json.loads(result.stdout)["spec"]
    assert (spec["task"]["name"], spec["task"]["prompts"], spec["task"]["seed"]) == ("greater_than", 7, 7)
    assert spec["ablation"] == {"kind": "mean", "mean_over": "all"}
    assert (spec["evaluation"]["grid"], spec["evaluation"]["random_circuits"]) == ([0.1], 3)
    assert (spec["model"], spec["metric"]) == ("gemma3-270m-q4", "prob_diff")


@pytest.mark.parametrize(("written", "read"), [("1e-3", 0.001), ("2.5E-1", 0.25), (".5e0", 0.5), ("2e1", 20)])
def test_numbers_with_an_exponent_are_numbers_on_the_command_line_and_in_files(
    service: str, tmp_path: Path, written: str, read: float
) -> None:
    yaml, as_json = tmp_path / "spec.yaml", tmp_path / "spec.json"
    yaml.write_text(f"selection:\n  size: {written}\n")
    as_json.write_text(f'{{"selection": {{"size": {written}}}}}')
    for words in (["ioi", "--set", f"selection.size={written}"], [str(yaml)], [str(as_json)]):
        result = invoke("--url", service, "submit", *words, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["spec"]["selection"]["size"] == read


def test_words_that_look_like_numbers_with_an_exponent_stay_words_in_quotes(service: str) -> None:
    result = invoke("--url", service, "submit", "ioi", "--set", "name='1e-3'", "--set", "notes=e3", "--json")
    assert result.exit_code == 0, result.stderr
    spec = json.loads(result.stdout)["spec"]
    assert (spec["name"], spec["notes"]) == ("1e-3", "e3")


def test_an_infinite_threshold_reaches_the_service(service: str) -> None:
    words = ("submit", "ioi", "--method", "acdc", "--set", "method.thresholds=[.inf]", "--json")
    result = invoke("--url", service, *words)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["spec"]["method"]["thresholds"] == ["Infinity"]


@pytest.mark.parametrize("value", [".nan", "2024-01-01"])
def test_a_value_that_json_has_not_is_named(service: str, value: str) -> None:
    result = invoke("--url", service, "circuits", "evaluate", "cir_0", "--set", f"name={value}")
    assert result.exit_code == WRONG
    assert "JSON" in result.stderr
    assert "bug" not in result.stderr


def test_a_plan_of_a_job_on_a_stored_circuit_asks_for_the_service() -> None:
    result = invoke("plan", "-", stdin="kind: try\ncircuit: cir_0\nprompt: x")
    assert result.exit_code == WRONG
    assert "--url" in result.stderr
    assert "--source" in result.stderr


@pytest.mark.parametrize("kind", ["challenge", "evaluate"])
def test_a_job_on_a_circuit_in_a_file_is_planned_as_the_service_plans_it(
    service: str, tmp_path: Path, kind: str
) -> None:
    found_circuit(FOUND_BY).save(tmp_path / "one.safetensors")
    here = invoke("plan", "-", "--source", str(tmp_path / "one.safetensors"), "--json", stdin=f"kind: {kind}")
    with Client(service) as client:
        circuit_id = client.import_file(found_circuit(FOUND_BY).to_bytes()).id
        there = client.plan({"kind": kind, "circuit": circuit_id})
    made = json.loads(here.stdout)
    assert made["flops"] == there["flops"] > 0
    assert [phase["name"] for phase in made["phases"]] == [phase["name"] for phase in there["phases"]]
    assert (made["memory"], made["disk"]) == (there["memory"], there["disk"])


def test_the_service_plans_no_circuit_that_is_in_a_file(service: str, tmp_path: Path) -> None:
    found_circuit(FOUND_BY).save(tmp_path / "one.safetensors")
    words = ("plan", "-", "--source", str(tmp_path / "one.safetensors"))
    result = invoke("--url", service, *words, stdin="kind: challenge")
    assert result.exit_code == WRONG
    assert "--source" in result.stderr


def test_a_challenge_tells_first_what_it_will_take(service: str) -> None:
    with Client(service) as client:
        circuit_id = client.import_file(found_circuit(FOUND_BY).to_bytes()).id
    result = invoke("--url", service, "challenge", circuit_id)
    assert result.exit_code == 0
    assert re.match(r"planned: about .+ in all", result.stderr)
    assert "is queued" in result.stdout
    assert invoke("--url", service, "challenge", circuit_id, "--json").stderr == ""


def test_pairs_that_a_job_would_be_refused_for_are_refused_by_the_check_in_the_same_words(tmp_path: Path) -> None:
    row = {"clean": "a", "corrupt": "b", "answers": [" c"], "wrong": [" d"]}
    told = {}
    for name, changed in (("answers", {"answers": []}), ("wrong", {"wrong": []})):
        pairs = tmp_path / f"{name}.jsonl"
        pairs.write_text("\n".join(json.dumps(one) for one in (row, {**row, **changed})))
        check = invoke("task", "check", str(pairs), "--model", "path:/nowhere")
        plan = invoke("plan", str(pairs), "--model", "path:/nowhere")
        assert check.exit_code == plan.exit_code == WRONG
        assert check.stderr == plan.stderr
        told[name] = check.stderr
    assert "(row 2)" in told["answers"]
    assert "row 2 of 2 has none" in told["wrong"]
    other = invoke(
        "task", "check", str(tmp_path / "wrong.jsonl"), "--model", "path:/nowhere", "--metric", "answer_logprob"
    )
    assert "nowhere" in other.stderr  # it got as far as the model


def test_a_mistyped_task_is_told_the_nearest() -> None:
    result = invoke("run", "iio")
    assert result.exit_code == WRONG
    assert "did you mean ioi?" in result.stderr


def test_nothing_begins_where_there_is_nothing_to_resume(tmp_path: Path) -> None:
    result = invoke("run", "ioi", "--out", str(tmp_path / "nowhere"), "--resume")
    assert result.exit_code == WRONG
    assert "nothing to resume" in result.stderr
    assert "leave out --resume" in result.stderr
    assert not (tmp_path / "nowhere").exists()


def test_nobody_is_asked_about_a_circuit_that_is_not_there(service: str) -> None:
    result = invoke("--url", service, "circuits", "delete", "cir_nope")
    assert result.exit_code == WRONG
    assert "cir_nope" in result.stderr
    assert "and its evaluations?" not in result.output


def test_a_circuit_that_was_not_challenged_is_told_with_the_command_that_does_it(service: str, tmp_path: Path) -> None:
    with Client(service) as client:
        circuit_id = client.import_file(found_circuit(FOUND_BY).to_bytes()).id
    result = invoke("--url", service, "circuits", "show", circuit_id, "--challenge-svg", str(tmp_path / "x.svg"))
    assert result.exit_code == WRONG
    assert f"`acdc challenge {circuit_id}`" in result.stderr


def test_a_circuit_written_by_hand_says_which_task_it_is_judged_on(service: str) -> None:
    default = invoke("--url", service, "circuits", "import", "--node", "mlp3")
    assert "judged on task ioi, the default" in default.stderr
    named = invoke("--url", service, "circuits", "import", "--node", "mlp3", "--set", "task=successor")
    assert "the default" not in named.stderr


@pytest.mark.parametrize("command", ["run", "plan"])
def test_names_that_the_circuit_in_a_file_has_not_are_refused_before_anything_is_started(
    tmp_path: Path, command: str
) -> None:
    source, spec = tmp_path / "one.safetensors", tmp_path / "spec.yaml"
    found_circuit(FOUND_BY).save(source)
    spec.write_text("kind: evaluate\nmodel: path:/nowhere\nedit: {remove_nodes: [mlp99], add_edges: [5.5->9.6]}\n")
    out = ("--out", str(tmp_path / "out")) if command == "run" else ()
    result = invoke(command, str(spec), "--source", str(source), *out)
    assert result.exit_code == WRONG
    assert "mlp99" in result.stderr
    assert "5.5" in result.stderr
    assert "nowhere" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_local_run_on_a_circuit_takes_its_file(tmp_path: Path) -> None:
    spec, source, out = tmp_path / "spec.yaml", tmp_path / "one.safetensors", tmp_path / "out"
    spec.write_text("kind: evaluate\ntask: {seed: 3}\nmodel: path:/nowhere\n")
    found_circuit(FOUND_BY).save(source)
    result = invoke("run", str(spec), "--out", str(out), "--source", str(source))
    assert "nowhere" in result.stderr  # the engine got as far as the model
    asked = json.loads((out / "spec.json").read_text())
    assert asked["circuit"].startswith("one.safetensors (sha256 ")
    assert asked["model"] == "path:/nowhere"
    assert (asked["task"]["name"], asked["task"]["seed"], asked["metric"]) == ("greater_than", 3, "prob_diff")
    assert asked["ablation"]["kind"] == "mean"


def test_models_in_the_cache_are_listed_with_size_and_last_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_CACHE_DIR", str(tmp_path))
    assert [model["cached"] for model in json.loads(invoke("models", "--json").stdout)] == [None, None]
    inventory = Inventory(tmp_path)
    for key, reference in (("k1", "hub:some/model"), ("k2", "gemma3-270m-q4")):
        directory = str(inventory.model_directory(key))
        model = LocalModel(key, reference, "pin", directory, "T", "llama", 9, "f", "t", "Q8_0", None, 3_000_000)
        inventory.install(inventory.fresh_partial(key), model)
    listed = {model["name"]: model for model in json.loads(invoke("models", "--json").stdout)}
    assert listed["smollm2-135m-instruct-q4"]["cached"] is None
    assert listed["gemma3-270m-q4"]["cached"]["size_bytes"] == 3_000_000
    assert listed["hub:some/model"]["quantisation"] == "Q8_0"
    used = datetime.fromisoformat(listed["hub:some/model"]["cached"]["last_use"])
    assert abs((datetime.now(UTC) - used).total_seconds()) < 60
    assert "hub:some" in invoke("models").stdout


@pytest.mark.parametrize("content", [b'{"scores": []}', b"sender,receiver", b""])
def test_a_file_that_cannot_be_imported_is_named_with_what_can(service: str, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    result = invoke("--url", service, "circuits", "import", str(file))
    assert result.exit_code == WRONG
    for part in (str(file), ".safetensors file that `acdc circuits export CIRCUIT` or", "--node and --edge"):
        assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "typo", "meant"), [("task", "gender_pronoun", "gendered_pronoun"), ("method", "epa", "eap")]
)
def test_a_list_for_a_name_that_nobody_knows_says_so(service: str, option: str, typo: str, meant: str) -> None:
    result = invoke("--url", service, "circuits", "list", f"--{option}", typo)
    assert result.exit_code == 0
    assert f"there is no {option} '{typo}'; did you mean {meant}?" in result.stderr
    assert json.loads(invoke("--url", service, "circuits", "list", f"--{option}", typo, "--json").stdout) == []


def test_a_list_for_a_known_name_without_circuits_is_not_remarked_on(service: str) -> None:
    known = ("--task", "custom", "--method", "acdc", "--metric", "accuracy", "--tag", "nobody's")
    assert invoke("--url", service, "circuits", "list", *known).stderr == ""


def test_wrong_setting_is_told_before_a_search_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACDC_THREADS", "two")
    said = invoke("plan", "ioi", "--method", "acdc", "--measure")
    assert said.exit_code == WRONG
    assert "ACDC_THREADS" in said.output


def test_measuring_tells_what_it_cannot_do_as_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, answers = tmp_path / "spec.json", io.StringIO()
    file.write_text(parse_job({"method": "acdc"}).canonical_json)
    monkeypatch.setenv("ACDC_THREADS", "two")
    assert rehearsal.main([str(file)], answers) == 1
    assert json.loads(answers.getvalue())["code"] == "invalid_spec"


def test_half_a_line_of_a_killed_process_is_left_out() -> None:
    assert list(json_lines(io.BytesIO(b'{"event": "step"}\n{"eve'))) == [{"event": "step"}]
