"""make bench-engine: what the engine costs next to the bare Hugging Face forward and backward that it needs.

Prints a table and writes build/bench_engine.json. Needs torch and transformers alone, on any device:
    python benchmarks/engine.py [--device cuda] [--shape llama-1b] [--prompts 8] [--tokens 14] [--out FILE]
Timing needs no trained weights, so models of a named shape get random ones.

eap-cost-ratio: `eap` on one batch, its clean and corrupt runs included, over two bare forwards and one bare
forward-backward (gradient at the embeddings), both with logits at the last position only.
eap-memory-residuals-per-layer: what `eap` holds at its peak beyond the bare forward-backward, in residual streams
(batch x pos x d_model) per layer. On a CPU from resident memory of fresh processes, on a GPU from its allocator.
masked-forward-ratio: one edge-masked forward with a random mask over one bare forward.
evaluation-over-masked-forward: measuring CIRCUITS random circuits as an evaluation does (metric, KL, accuracy, answer
log-probability; many circuits a batch) over as many edge-masked forwards of one circuit each.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from figures import Figure, environment, write
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from acdc.discovery.eap import score_eap
from acdc.discovery.problem import Problem
from acdc.metrics import METRICS
from acdc.models.architectures import wrap
from acdc.models.parity import check_parity, probe_tokens
from acdc.models.transformer import Transformer, as_found
from acdc.patching.ablation import Resample
from acdc.patching.batches import make_batches
from acdc.patching.circuits import measure, prepare
from acdc.patching.masked import run_masked
from acdc.progress import Quiet
from acdc.tasks.prompts import Pair

MEMORY = 2**33
RIGHT, WRONG = 5, 6
CIRCUITS = 16
JUDGED = ("logit_diff", "kl_divergence", "accuracy", "answer_logprob")


def llama(layers: int, heads: int, kv: int, d: int, mlp: int, vocab: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=d,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            tie_word_embeddings=True,
        )
    )


SHAPES: dict[str, Callable[[], PreTrainedModel]] = {
    "smollm2-135m": lambda: llama(30, 9, 3, 576, 1536, 49152),
    "gpt2-small": lambda: GPT2LMHeadModel(GPT2Config()),
    "llama-1b": lambda: llama(16, 32, 8, 2048, 8192, 128256),
    "llama-8b": lambda: llama(32, 32, 8, 4096, 14336, 128256),
}


def make_problem(shape: str, device: str, prompts: int, tokens: int) -> Problem:
    torch.manual_seed(0)
    with torch.device(device):
        model = SHAPES[shape]().eval()
    t = wrap(model)
    ids = torch.randint(t.vocab_size, (2, prompts, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [Pair(tuple(c), tuple(x), ((RIGHT,),), ((WRONG,),), "all") for c, x in zip(*ids, strict=True)]
    batches = make_batches(t, pairs, prompts * tokens, MEMORY)
    return Problem(t, prepare(t, batches, Resample()), METRICS["logit_diff"], 2**30)


def bare_forward(problem: Problem) -> None:
    problem.t.module(problem.prompts[0].batch.clean, logits_to_keep=1)


def bare_forward_backward(problem: Problem) -> None:
    model, clean = problem.t.module, problem.prompts[0].batch.clean
    with torch.enable_grad():
        x = model.get_input_embeddings()(clean).requires_grad_(True)  # type: ignore[operator]
        logits = model(inputs_embeds=x, logits_to_keep=1, use_cache=False).logits[:, 0]
        torch.autograd.grad((logits[:, RIGHT] - logits[:, WRONG]).sum(), x)


def bare_eap(problem: Problem) -> None:
    bare_forward(problem)
    problem.t.module(problem.prompts[0].batch.corrupt, logits_to_keep=1)
    bare_forward_backward(problem)


def whole_eap(problem: Problem) -> None:
    prompts = prepare(problem.t, [p.batch for p in problem.prompts], Resample())
    score_eap(Problem(problem.t, prompts, problem.objective, problem.memory_bytes), Quiet())


def masked_forward(problem: Problem) -> None:
    t, (p, *_) = problem.t, problem.prompts
    mask = (torch.rand(1, *t.graph.legal.shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(t.device)
    t.unembed(p.batch.take(run_masked(t, p.inputs, p.ablation, mask.to(t.dtype))))


def judged_circuits(problem: Problem) -> None:
    t = problem.t
    masks = (torch.rand(CIRCUITS, *t.graph.legal.shape, generator=torch.Generator().manual_seed(0)) < 0.5).to(t.dtype)
    measure(t, problem.prompts, masks, [METRICS[name] for name in JUDGED], MEMORY)


def masked_forwards(problem: Problem) -> None:
    for _ in range(CIRCUITS):
        masked_forward(problem)


def seconds(t: Transformer, work: Callable[[], None]) -> float:
    _wait(t)
    begin = time.perf_counter()
    work()
    _wait(t)
    return time.perf_counter() - begin


def _wait(t: Transformer) -> None:
    if t.device.type == "cuda":
        torch.cuda.synchronize()


def ratios(
    problem: Problem, ours: Callable[[Problem], None], bare: Callable[[Problem], None], runs: int
) -> list[float]:
    """Paired runs, one after the other, so that a busy machine slows both."""
    with as_found(problem.t.module), torch.no_grad():
        ours(problem)
        bare(problem)
        return [
            seconds(problem.t, lambda: ours(problem)) / seconds(problem.t, lambda: bare(problem)) for _ in range(runs)
        ]


# -- memory ------------------------------------------------------------------------------------------------------------

# glibc gives every freed tensor back to the system, so that resident memory is what lives and not what once did: as it
# is by default, the figure differed by two residual streams from run to run.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@contextmanager
def watched_rss() -> Iterator[list[int]]:
    """The most resident memory seen inside, sampled every millisecond: [bytes above the start]."""
    import psutil

    process, peak, stop = psutil.Process(), [0], threading.Event()
    start = process.memory_info().rss

    def watch() -> None:
        while not stop.wait(0.001):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def peak_bytes(problem: Problem, work: Callable[[Problem], None]) -> int:
    gc.collect()
    with as_found(problem.t.module), torch.no_grad():
        if problem.t.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work(problem)
            return torch.cuda.max_memory_allocated() - before
        with watched_rss() as peak:
            work(problem)
        return peak[0]


def memory_child(arguments: argparse.Namespace) -> None:
    """One measurement in a process of its own, since freed memory is not always given back."""
    problem = make_problem(arguments.shape, arguments.device, arguments.prompts, arguments.tokens)
    small = make_problem(arguments.shape, arguments.device, 1, 4)
    work = {"eap": lambda p: score_eap(p, Quiet()), "bare": bare_forward_backward}[arguments.memory]
    work(small)  # what only the first call needs
    print(peak_bytes(problem, work))  # type: ignore[arg-type]


def residuals_per_layer(arguments: argparse.Namespace) -> float:
    """eap begins with its corrupt outputs at hand: 2 residual streams a layer, added to what the call takes."""
    tokens = max(arguments.prompts * arguments.tokens, 4096)
    peaks = {}
    for what in ("eap", "bare"):
        command = [sys.executable, __file__, "--memory", what, "--shape", arguments.shape, "--device", arguments.device]
        command += ["--prompts", str(tokens // 64), "--tokens", "64"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **GIVES_BACK})
        peaks[what] = int(done.stdout.split()[-1])
    config = make_config(arguments.shape)
    residual = (tokens // 64) * 64 * config["d_model"] * 4
    return float((peaks["eap"] - peaks["bare"]) / (residual * config["n_layers"]) + 2)


def make_config(shape: str) -> dict[str, int]:
    with torch.device("meta"):
        config = SHAPES[shape]().config
    return {"d_model": config.hidden_size, "n_layers": config.num_hidden_layers}


# -- the table ---------------------------------------------------------------------------------------------------------


def figure(name: str, value: float, unit: str, target: float, runs: int, how: str) -> Figure:
    return Figure(name, round(value, 3), unit, target, "lower", runs, how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=14)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("build/bench_engine.json"))
    parser.add_argument("--memory", choices=["eap", "bare"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        memory_child(arguments)
        return
    problem = make_problem(arguments.shape, arguments.device, arguments.prompts, arguments.tokens)
    parity = check_parity(problem.t, *probe_tokens(problem.t))
    how = f"{arguments.shape}, random weights, {arguments.prompts} prompts of {arguments.tokens} tokens, float32"
    eap = ratios(problem, whole_eap, bare_eap, arguments.runs)
    masked = ratios(problem, masked_forward, bare_forward, arguments.runs)
    judged = ratios(problem, judged_circuits, masked_forwards, max(3, arguments.runs // 3))
    figures = [
        figure("eap-cost-ratio", statistics.median(eap), "x", 1.5, len(eap), f"median of paired runs; {how}"),
        figure(
            "masked-forward-ratio", statistics.median(masked), "x", 3.0, len(masked), f"median of paired runs; {how}"
        ),
        figure(
            "evaluation-over-masked-forward",
            statistics.median(judged),
            "x",
            1.5,
            len(judged),
            f"median of paired runs, {CIRCUITS} circuits; {how}",
        ),
        figure(
            "eap-memory-residuals-per-layer",
            residuals_per_layer(arguments),
            "residual streams",
            8.0,
            1,
            f"peak beyond the bare forward-backward; {arguments.shape}, random weights, 4096 tokens, float32",
        ),
    ]
    write(arguments.out, figures, environment(problem.t.device, parity=parity.worst))


if __name__ == "__main__":
    main()
