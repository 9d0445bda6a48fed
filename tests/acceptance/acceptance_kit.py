"""The whole service as processes over a tiny model, and what is asked of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from tiny_files import write_tiny_llama
from typer.testing import CliRunner

from acdc.circuit import Circuit
from acdc.cli.app import app
from acdc.client import Client, Job
from acdc.store import JobRow, Store

WITHIN_S = 120.0
N_PROMPTS, N_HELD_OUT = 12, 6
LETTERS = "efghijklmnopqrstuvwxyz"

Found = TypeVar("Found")


def until(what: str, look: Callable[[], Found], within_s: float = WITHIN_S) -> Found:
    """What `look` gives, once that is true."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.02)
    return found


# -- the model and what is asked of it ---------------------------------------------------------------------------------


def write_model(directory: Path, *, spoil: bool = False) -> None:
    """A tiny Llama whose weights are large enough that its answers depend on the prompt. spoil: with a NaN in it."""
    model = write_tiny_llama(directory, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= 10
        if spoil:
            model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(directory)


def pairs(n: int) -> list[dict[str, Any]]:
    """Random letters, a token each, and as the answer the last one again: with tied embeddings the model leans to that.
    The corrupt prompt has another last letter."""
    draw = random.Random(0)
    rows = []
    for i in range(n):
        start, (right, wrong) = "".join(draw.choices(LETTERS, k=7)), draw.sample(LETTERS, 2)
        clean, corrupt = start + right, start + wrong
        rows.append({"clean": clean, "corrupt": corrupt, "answers": right, "wrong": wrong, "group": f"group {i % 6}"})
    return rows


def task(n_prompts: int = N_PROMPTS, n_held_out: int = N_HELD_OUT) -> dict[str, Any]:
    return {"name": "custom", "pairs": pairs(n_prompts + n_held_out), "prompts": n_prompts, "held_out": n_held_out}


def quick(model: Path) -> dict[str, Any]:
    """A search of less than a second."""
    return {
        "model": f"path:{model}",
        "task": task(),
        "method": {"name": "eap-ig-inputs", "steps": 3},
        "evaluation": {"grid": [0.05, 0.2, 0.5, 1.0], "random_circuits": 3, "band_circuits": 1},
        "tags": ["acceptance"],
    }


def slow(model: Path, **compute: Any) -> dict[str, Any]:
    """A search of some seconds that checkpoints all the way: two prompts a batch, one edge at a time."""
    return {
        "model": f"path:{model}",
        "task": task(),
        "method": {"name": "acdc", "thresholds": [0.003]},
        "evaluation": {"grid": [1.0], "rules": ["signed"], "random_circuits": 0, "band_circuits": 0},
        "compute": {"batch_tokens": 16, **compute},
    }


def assert_same(one: Circuit, other: Circuit) -> None:
    """The same kept edges, and scores within 1e-5 of the largest."""
    assert one.graph == other.graph
    assert np.array_equal(one.kept, other.kept)
    assert np.abs(one.scores - other.scores).max() <= 1e-5 * np.abs(one.scores).max()


# -- the service -------------------------------------------------------------------------------------------------------


class Stack:
    """`acdc serve` with all that it starts, leases short enough for tests."""

    def __init__(self, directory: Path) -> None:
        self.data = directory
        self.environment = {
            **os.environ,
            "ACDC_DATA_DIR": str(directory),  # also how its processes are known from others
            "ACDC_CACHE_DIR": str(directory / "models"),
            "ACDC_LEASE_S": "3",
            "ACDC_BEAT_S": "0.2",
            "ACDC_POLL_S": "0.1",
            "ACDC_REAP_S": "0.5",
        }

    def start(self) -> None:
        with (self.data / "serve.log").open("ab") as log:
            self.process = self.command("serve", "--port", "0", "--json", stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.data / "serve.log").read_text()
        self.url = str(json.loads(line)["url"])
        self.client = Client(self.url)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Then nothing that it started may be there any more."""
        self.client.close()
        self.process.send_signal(number)
        status = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert status == (0 if number == signal.SIGTERM else -number), (self.data / "serve.log").read_text()
        until("the end of all processes", lambda: not self.family(), 30)

    def command(self, *words: str, **pipes: Any) -> subprocess.Popen[bytes]:
        """A command of the user's, in this service's environment."""
        return subprocess.Popen([sys.executable, "-m", "acdc.cli", *words], env=self.environment, **pipes)

    def ask(self, *words: str, status: int = 0) -> Any:
        """A command of the user's against this service: what it said."""
        said = CliRunner().invoke(app, ["--url", self.url, *words])
        assert said.exit_code == status, said.output
        return said

    def ask_json(self, *words: str) -> Any:
        return json.loads(self.ask(*words, "--json").stdout)

    def family(self, module: str = "") -> list[int]:
        """Every process with this data directory in its environment, wherever it hangs; those of one module."""
        found = []
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("ACDC_DATA_DIR") == str(self.data)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE and module in " ".join(process.cmdline()):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def kill(self, module: str) -> None:
        [pid] = self.family(module)
        os.kill(pid, signal.SIGKILL)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def succeeded(self, job: Job) -> Job:
        job = self.client.wait(job.id)
        assert job.state == "succeeded", (job.error, [line.line for line in self.client.logs(job.id)])
        return job

    def circuit(self, job: Job) -> Circuit:
        [circuit_id] = job.circuit_ids
        return self.client.circuit_file(circuit_id)

    def failed(self, job: Job) -> str:
        """Code and whole message."""
        job = self.client.wait(job.id)
        assert job.state == "failed"
        assert job.error is not None
        return "\n".join([job.error.code, job.error.message, *map(str, job.error.faults)])

    def in_the_middle(self, spec: Mapping[str, Any]) -> Job:
        """A job that has a checkpoint in the store and is not over."""
        job = self.client.submit(spec)
        until("a checkpoint", lambda: self.row(job.id).checkpoint)
        assert self.row(job.id).state == "running"
        return job

    def row(self, job_id: str) -> JobRow:
        with Store.open(f"sqlite:///{self.data / 'acdc.db'}") as store:
            return store.jobs.get(job_id)

    def assert_resumed(self, job: Job, attempt: int) -> None:
        """It went on from a checkpoint, ended once and left one result."""
        events = list(self.client.events(job.id))
        states = [event.data["state"] for event in events if event.kind == "state"]
        assert any(event.kind == "progress" for event in events), "it was silent"
        assert states.count("running") == attempt
        assert states[-1] == "succeeded"
        assert any("resumed from step" in line.line for line in self.client.logs(job.id)), "it started over"
        assert self.row(job.id).attempt == attempt
        assert len(self.client.job(job.id).results) == 1
