"""What a model sees of a user's own pairs, and its metric on each. What `acdc task check` starts: it needs the model.

    python -m workers.check PAIRS --model M [--corruption C] [--metric M]

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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from acdc.errors import AcdcError
from acdc.settings import load_settings
from acdc.spec import DiscoverSpec, MetricName, TaskSpec, parse_job, reference_of
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
            answer = _check(options)
    except AcdcError as error:
        answer = {"error": error.to_dict()}
    sys.stdout.write(json.dumps(answer) + "\n")
    return int("error" in answer)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.check", description="Show pairs as a model sees them.")
    parser.add_argument("pairs", metavar="PAIRS", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corruption", default=GIVEN, choices=CORRUPTIONS)
    parser.add_argument("--metric", default=DiscoverSpec().metric, choices=get_args(MetricName))
    return parser.parse_args(argv)


def _check(options: argparse.Namespace) -> dict[str, Any]:
    """The file first: a fault in it should not wait for a model to be fetched. Raises AcdcError."""
    rows = read_pairs(options.pairs)
    task = {"name": "custom", "pairs": [asdict(row) for row in rows], "corruption": options.corruption}
    parse_job({"model": options.model, "metric": options.metric, "task": task}, is_request=True)  # as a job reads them
    from acdc.models.allowed import AllowList
    from acdc.models.cache import ModelCache

    settings = load_settings()
    allowed = AllowList(settings.allowed_models, settings.allowed_dirs)
    models = ModelCache(settings.cache_dir, quota_bytes=settings.model_quota_bytes, allowed=allowed, device="cpu")
    loaded = models.load(reference_of(options.model), device="cpu")
    sizes = TaskSpec()
    report = check_pairs(
        loaded.tokenizer,
        rows,
        n_search=sizes.prompts,
        n_held_out=sizes.held_out,
        corruption=options.corruption,
        seed=sizes.seed,
    )
    return {**report.with_metrics(_metrics(loaded, report, options.metric)).to_dict(), "metric": options.metric}


def _metrics(loaded: Loaded, report: CheckReport, name: str) -> dict[int, float]:
    """A metric of the model on every usable row, by row number.

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
    if not pairs:
        return {}
    compute = DiscoverSpec().compute
    with as_found(loaded.model):
        t = wrap(loaded.model)
        batches = make_batches(t, list(pairs.values()), compute.batch_tokens, compute.memory_bytes)
        whole = torch.from_numpy(t.graph.legal[None].astype("float32"))
        values = measure(t, prepare(t, batches, Zero()), whole, [METRICS[name]], compute.memory_bytes)[name][0]
    return dict(zip(pairs, map(float, values), strict=True))


if __name__ == "__main__":
    sys.exit(main())
