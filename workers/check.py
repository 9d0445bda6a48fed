"""What a model sees of a user's own pairs, and its metric on each. What `acdc task check` starts: it needs the model.

    python -m workers.check PAIRS --model M [--corruption C]

stdout carries one JSON object: `CheckReport.to_dict` and the name of the `metric`, or
{"error": {"code", "message", "faults"}}.
Exit status: 0 or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.errors import AcdcError
from acdc.settings import load_settings
from acdc.spec import DiscoverSpec, TaskSpec, reference_of
from acdc.tasks.checking import CheckReport, check_pairs
from acdc.tasks.custom import CORRUPTIONS, GIVEN
from acdc.tasks.pair_files import read_pairs

if TYPE_CHECKING:
    from acdc.models.loading import Loaded


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    options = _parse(argv)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is no answer
            answer = _check(options.pairs, options.model, options.corruption)
    except AcdcError as error:
        answer = {"error": error.to_dict()}
    sys.stdout.write(json.dumps(answer) + "\n")
    return int("error" in answer)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.check", description="Show pairs as a model sees them.")
    parser.add_argument("pairs", metavar="PAIRS", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corruption", default=GIVEN, choices=CORRUPTIONS)
    return parser.parse_args(argv)


def _check(pairs: Path, model: str, corruption: str) -> dict[str, Any]:
    """The file first: a fault in it should not wait for a model to be fetched. Raises AcdcError."""
    rows = read_pairs(pairs)
    from acdc.models.allowed import AllowList
    from acdc.models.cache import ModelCache

    settings = load_settings()
    allowed = AllowList(settings.allowed_models, settings.allowed_dirs)
    models = ModelCache(settings.cache_dir, quota_bytes=settings.model_quota_bytes, allowed=allowed, device="cpu")
    loaded = models.load(reference_of(model), device="cpu")
    sizes = TaskSpec()
    report = check_pairs(
        loaded.tokenizer,
        rows,
        n_search=sizes.prompts,
        n_held_out=sizes.held_out,
        corruption=corruption,
        seed=sizes.seed,
    )
    metric, values = _metrics(loaded, report)
    return {**report.with_metrics(values).to_dict(), "metric": metric}


def _metrics(loaded: Loaded, report: CheckReport) -> tuple[str, dict[int, float]]:
    """The model's own metric on every usable row, by row number; one metric for all, so that rows can be compared.

    Raises UnsupportedModel, as a search would.
    """
    import torch

    from acdc.metrics import METRICS
    from acdc.models.architectures import wrap
    from acdc.models.transformer import as_found
    from acdc.patching.ablation import Zero
    from acdc.patching.batches import make_batches
    from acdc.patching.circuits import measure, prepare

    pairs = {row.row: row.pair for row in report.rows if row.pair is not None}
    name = "logit_diff" if all(pair.wrong for pair in pairs.values()) else "answer_logprob"
    if not pairs:
        return name, {}
    compute = DiscoverSpec().compute
    with as_found(loaded.model):
        t = wrap(loaded.model)
        batches = make_batches(t, list(pairs.values()), compute.batch_tokens, compute.memory_bytes)
        whole = torch.from_numpy(t.graph.legal[None].astype("float32"))
        values = measure(t, prepare(t, batches, Zero()), whole, [METRICS[name]], compute.memory_bytes)[name][0]
    return name, dict(zip(pairs, map(float, values), strict=True))


if __name__ == "__main__":
    sys.exit(main())
