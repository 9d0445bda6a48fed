"""Compile the programs with tracr and store their weights. In an environment of its own: `make truth-tracr`.

Written into the directory named: one npz a program with the weights as tracr made them, and programs.json with what
they mean. What a model says is checked against the program itself (tracr's interpreter) on prompts of its longest
length.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from programs import PROGRAMS, Program
from tracr.compiler import compiling
from tracr.rasp import causal_eval

BOS = "BOS"
SHARP = 12.0  # logits that one unit of an output's code is worth
CHECKED = 200  # prompts

Value = Any  # a token or what is said of it: a word or a number


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    rows = [store(program, out) for program in PROGRAMS]
    (out / "programs.json").write_text(json.dumps(rows, indent=1) + "\n")


def store(program: Program, out: Path) -> dict[str, Any]:
    sop = program.make()
    model = compiling.compile_rasp_to_model(sop, set(program.tokens), program.longest, causal=True, compiler_bos=BOS)
    meant = meanings(program, sop)
    check(program, model, meant)
    says = sorted({one for row in meant.values() for one in row if one is not None}, key=str)
    weights = {**weights_of(model, program), **read_out(model, sop.label, says), **reference(model, program)}
    np.savez_compressed(out / f"{program.name}.npz", **{name: w.astype(np.float32) for name, w in weights.items()})
    config = model.model_config
    print(f"{program.name}: {config.num_layers} layers x {config.num_heads} heads, {len(model.residual_labels)} wide")
    return {
        "name": program.name,
        "about": program.about,
        "tokens": [BOS, *map(str, program.tokens)],
        "says": [str(one) for one in says],
        "longest": program.longest,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
    }


def meanings(program: Program, sop: Any) -> dict[tuple[Value, ...], list[Value]]:
    """What is to be said at every place of some prompts; those in which a place has two answers are left out."""
    meant = {}
    for prompt in prompts(program):
        with contextlib.suppress(ValueError):  # the interpreter cannot average words
            meant[prompt] = causal_eval.evaluate(sop, prompt)
    return meant


def prompts(program: Program) -> list[tuple[Value, ...]]:
    every = list(itertools.product(program.tokens, repeat=program.longest))
    return random.Random(0).sample(every, min(CHECKED, len(every)))


def check(program: Program, model: Any, meant: dict[tuple[Value, ...], list[Value]]) -> None:
    """Stop where the model says something else than the program, at a place where that says anything."""
    for prompt, wanted in meant.items():
        said = model.apply([BOS, *prompt]).decoded[1:]
        for place, (ours, theirs) in enumerate(zip(said, wanted, strict=True)):
            is_same = ours == theirs or (isinstance(theirs, float) and abs(ours - theirs) < 1e-3)
            if theirs is not None and not is_same:
                sys.exit(f"{program.name} of {prompt} at {place}: compiled it says {ours}, meant is {theirs}")


def weights_of(model: Any, program: Program) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Embeddings [token, d] (BOS first) and [position, d]; of each layer [in, out] matrices."""
    params, n_layers = model.params, model.model_config.num_layers
    code = model.input_encoder.encoding_map
    found = {
        "tokens": np.asarray(params["token_embed"]["embeddings"])[[code[token] for token in (BOS, *program.tokens)]],
        "positions": np.asarray(params["pos_embed"]["embeddings"]),
    }
    parts = {"q": "attn/query", "k": "attn/key", "v": "attn/value", "out": "attn/linear", "up": "mlp/linear_1"}
    for layer, (ours, theirs) in itertools.product(range(n_layers), {**parts, "down": "mlp/linear_2"}.items()):
        own = params[f"transformer/layer_{layer}/{theirs}"]
        found[f"{ours}{layer}"] = np.asarray(own["w"])
        if np.asarray(own["b"]).any():
            sys.exit(f"{program.name}: {theirs} of layer {layer} has a bias, which nothing here keeps")
    return found


def reference(model: Any, program: Program) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """What tracr's own forward gives, for a test of the port: prompts [n, pos] as places in `tokens`, residuals
    [n, pos, d] after the last layer."""
    chosen = prompts(program)[:4]
    residuals = [np.asarray(model.apply([BOS, *prompt]).transformer_output)[0] for prompt in chosen]
    places = [[0, *(1 + program.tokens.index(token) for token in prompt)] for prompt in chosen]
    return {"reference_prompts": np.array(places), "reference_residuals": np.stack(residuals)}


def read_out(model: Any, label: str, says: list[Value]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """unembed [said, d] and unembed_bias [said]: from the residual stream to the logits of what may be said.

    A word has a direction of its own. A number is one coordinate, v: the logit of the number c is linear in v, and
    largest for the nearest c: s (c v - c^2 / 2), with s so large that neighbours are as far apart as words are.
    """
    labels = model.residual_labels
    if hasattr(model.output_encoder, "encoding_map"):
        unembed = np.zeros((len(says), len(labels)))
        for row, one in enumerate(says):
            unembed[row, labels.index(f"{label}:{one}")] = SHARP
        return {"unembed": unembed, "unembed_bias": np.zeros(len(says))}
    numbers = np.array(says, dtype=float)
    gaps = np.diff(np.sort(numbers))
    scale = 2 * SHARP / gaps.min() ** 2
    unembed = np.zeros((len(says), len(labels)))
    unembed[:, labels.index(label)] = scale * numbers
    return {"unembed": unembed, "unembed_bias": -scale * numbers**2 / 2}


if __name__ == "__main__":
    main()
