"""Read a file of custom pairs: a JSON list of objects, or JSONL with one object a line."""

from __future__ import annotations

import json
from pathlib import Path

from acdc.errors import Fault, TaskError
from acdc.tasks.pair_rows import PairRow, parse_rows


def read_pairs(path: Path) -> tuple[PairRow, ...]:
    """Raises TaskError for a file that cannot be read, and with every fault by row for one that is not written well."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    rows = _json_list(path, text) if text.lstrip().startswith("[") else _json_lines(path, text)
    if not rows:
        raise TaskError(f"{path}: no rows in it; write a JSON list of objects, or one object a line")
    return parse_rows(rows)


def _json_list(path: Path, text: str) -> list[object]:
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise TaskError(f"{path}: not valid JSON: {error}") from None
    assert isinstance(rows, list), "what begins with a bracket is a list"
    return rows


def _json_lines(path: Path, text: str) -> list[object]:
    """Empty lines are passed over and have no row number."""
    rows, faults = [], []
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for row, (number, line) in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            faults.append(Fault(f"row {row}", f"line {number} is not valid JSON: {error}"))
    if faults:
        raise TaskError(f"{path}: {len(faults)} of {len(lines)} lines are not JSON", faults)
    return rows
