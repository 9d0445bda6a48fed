"""What a model sees of a user's own pairs. What `acdc task check` starts: it needs the model's tokenizer.

    python -m workers.check PAIRS --model M [--corruption C]

stdout carries one JSON object: `CheckReport.to_dict`, or {"error": {"code", "message", "faults"}}.
Exit status: 0 or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError
from acdc.settings import load_settings
from acdc.spec import TaskSpec
from acdc.tasks.checking import check_pairs
from acdc.tasks.custom import CORRUPTIONS, GIVEN
from acdc.tasks.pair_files import read_pairs


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
    from acdc.pipeline import reference_of

    settings = load_settings()
    allowed = AllowList(settings.allowed_models, settings.allowed_dirs)
    models = ModelCache(settings.cache_dir, quota_bytes=settings.model_quota_bytes, allowed=allowed, device="cpu")
    tokenizer = models.load(reference_of(model), device="cpu").tokenizer
    sizes = TaskSpec()
    report = check_pairs(
        tokenizer, rows, n_search=sizes.prompts, n_held_out=sizes.held_out, corruption=corruption, seed=sizes.seed
    )
    return report.to_dict()


if __name__ == "__main__":
    sys.exit(main())
