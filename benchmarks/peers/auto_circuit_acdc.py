"""auto-circuit's ACDC on a GPT-2-shaped model, as it is; runs in an environment of its own (auto_circuit.txt).

    python auto_circuit_acdc.py DIRECTORY

DIRECTORY holds model/ (a Hugging Face GPT-2), job.json (objective, names of senders and receivers, taus) and
arrays.npz; done.json and done.npz are written beside them. Arrays: clean, corrupt [B, pos]; right, wrong [B];
logits [2, B, vocab], of the clean and the corrupt prompts at their last token, checked against this side's before
anything is timed; and for run i order.i [n, 2], the (sender, receiver) to test in this order, and cut.i [senders,
receivers], the edges that are cut when it begins.

What is theirs and runs unchanged is `acdc_prune_scores`. What it is given: its own patchable model, whose set of
edges is replaced by those to test, in the order wanted (it sorts them by layer, and the sort is stable: left alone,
the order inside a layer is that of string hashes); masks that start at cut.i, where it would start at none; and an
objective less its value at that start, since it takes that value to be 0. For the logit difference, which it does not
have, its KL is replaced by the loss of logit difference to the clean run.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos import ACDC
from auto_circuit.utils.ablation_activations import src_ablations
from auto_circuit.utils.graph_utils import patch_mode, patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

PARITY = 1e-4  # of the logits' range
SAY_EVERY_S = 5.0


def load(directory: Path) -> HookedTransformer:
    theirs = GPT2LMHeadModel.from_pretrained(directory).eval()
    shape = theirs.config
    cfg = HookedTransformerConfig(
        n_layers=shape.n_layer,
        n_heads=shape.n_head,
        d_model=shape.n_embd,
        d_head=shape.n_embd // shape.n_head,
        d_mlp=4 * shape.n_embd,
        d_vocab=shape.vocab_size,
        n_ctx=shape.n_positions,
        act_fn="gelu_new",
        eps=shape.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )
    model = HookedTransformer(cfg)
    model.load_state_dict(convert_gpt2_weights(theirs, cfg), strict=False)
    assert not model.unembed.b_U.any()
    return model.eval().requires_grad_(False)


def clocks() -> np.ndarray:
    """Seconds now: of the clock, and of all cores that this process had. [2]"""
    return np.array([time.perf_counter(), time.process_time()])


def our_name(name: str) -> str:
    """`Resid Start`, `A0.3`, `A0.3.Q`, `MLP 0`, `Resid End` -> `embed`, `0.3`, `0.3.q`, `mlp0`, `logits`."""
    fixed = {"Resid Start": "embed", "Resid End": "logits"}
    return fixed.get(name) or name.replace("MLP ", "mlp").removeprefix("A").lower()


class Side:
    """Their model and prompts, ready for runs."""

    def __init__(self, directory: Path) -> None:
        self.job = json.loads((directory / "job.json").read_text())
        self.arrays = np.load(directory / "arrays.npz")
        tensors = {name: torch.from_numpy(self.arrays[name]) for name in ("clean", "corrupt", "right", "wrong")}
        self.clean, self.corrupt, self.right, self.wrong = tensors.values()
        hooked = load(directory / "model")
        with torch.no_grad():
            found = torch.stack([hooked(tokens)[:, -1] for tokens in (self.clean, self.corrupt)])
        wanted = torch.from_numpy(self.arrays["logits"])
        self.parity = float((found - wanted).abs().max() / (wanted.max() - wanted.min()))
        if not self.parity <= PARITY:
            print(f"the two sides' logits differ by {self.parity:.1e} of their range: nothing was timed")
            raise SystemExit(1)
        self.clean_logprobs = found[0].log_softmax(-1)
        self.model = patchable_model(hooked, factorized=True, slice_output="last_seq", separate_qkv=True)
        self.edges = {(our_name(edge.src.name), our_name(edge.dest.name)): edge for edge in self.model.edges}
        rows = PromptDataset(self.clean, self.corrupt, list(self.right[:, None]), list(self.wrong[:, None]))
        self.prompts = PromptDataLoader(rows, seq_len=None, diverge_idx=0, batch_size=len(self.clean))

    def named(self, sender: int, receiver: int) -> object:
        return self.edges[self.job["senders"][sender], self.job["receivers"][receiver]]

    def loss(self, logprobs: torch.Tensor, clean_logprobs: torch.Tensor) -> torch.Tensor:
        if self.job["objective"] == "kl_divergence":
            return THEIR_KL(logprobs, clean_logprobs)
        here, clean = (self._logit_diff(values) for values in (logprobs, clean_logprobs))
        return (clean - here).mean()

    def _logit_diff(self, logprobs: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(logprobs))
        return logprobs[rows, self.right] - logprobs[rows, self.wrong]

    def set_masks(self, cut: np.ndarray) -> None:
        THEIR_MASKS(self.model, 0.0)
        for sender, receiver in np.argwhere(cut):
            edge = self.named(sender, receiver)
            edge.patch_mask(self.model).data[edge.patch_idx] = 1.0

    def standing(self) -> float:
        """The objective of the circuit that the masks hold now."""
        with torch.inference_mode(), patch_mode(self.model, src_ablations(self.model, self.corrupt)):
            out = self.model(self.clean)[self.model.out_slice]
        return float(self.loss(out.log_softmax(-1), self.clean_logprobs))

    def run(self, number: int, tau: float) -> tuple[dict[str, object], dict[str, np.ndarray]]:
        order, cut = self.arrays[f"order.{number}"], self.arrays[f"cut.{number}"]
        start = 0.0
        if cut.any():
            self.set_masks(cut)
            start = self.standing()
        stamps, values = [], []

        def objective(logprobs: torch.Tensor, clean_logprobs: torch.Tensor) -> torch.Tensor:
            value = self.loss(logprobs, clean_logprobs) - start
            stamps.append(clocks())
            values.append(float(value))
            say(f"auto-circuit: run {number + 1}, edge {len(stamps)} of {len(order)}")
            return value

        self.model.edges = [self.named(*edge) for edge in order]
        ACDC.multibatch_kl_div = objective
        ACDC.set_all_masks = (lambda model, val: self.set_masks(cut)) if cut.any() else THEIR_MASKS
        begin = clocks()
        scores = ACDC.acdc_prune_scores(self.model, self.prompts, None, tao_exps=[0], tao_bases=[tau])
        seconds = (clocks() - begin).tolist()
        kept = [bool(torch.isinf(edge.prune_score(scores))) for edge in self.model.edges]
        facts = {"tau": tau, "seconds": seconds, "tested": len(stamps), "start": start}
        found = {"kept": np.array(kept), "seconds": np.diff(stamps, axis=0), "values": np.array(values)}
        return facts, {f"{name}.{number}": array for name, array in found.items()}


THEIR_KL, THEIR_MASKS = ACDC.multibatch_kl_div, ACDC.set_all_masks
LAST_SAID = [0.0]


def say(message: str) -> None:
    if time.monotonic() - LAST_SAID[0] >= SAY_EVERY_S:
        LAST_SAID[0] = time.monotonic()
        print(message, flush=True)


def main() -> None:
    directory = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    side = Side(directory)
    runs, arrays = [], {}
    for number, tau in enumerate(side.job["taus"]):
        facts, found = side.run(number, tau)
        runs.append(facts)
        arrays.update(found)
    np.savez(directory / "done.npz", **arrays)
    done = {"parity": side.parity, "torch": torch.__version__, "n_edges": len(side.edges), "runs": runs}
    (directory / "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()
