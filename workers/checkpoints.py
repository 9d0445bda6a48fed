"""Checkpoints as files: one safetensors file holds a search's arrays, its facts and what it belongs to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from acdc.progress import Checkpoint
from acdc.version import ENGINE_VERSION

FORMAT = "acdc-checkpoint/1"


def write_checkpoint(path: Path, checkpoint: Checkpoint, spec_sha256: str) -> None:
    """Whole and on disk under its name, or not there at all."""
    header = {
        "format": FORMAT,
        "engine_version": ENGINE_VERSION,
        "spec_sha256": spec_sha256,
        "step": checkpoint.step,
        "facts": dict(checkpoint.facts),
    }
    arrays = {name: np.asarray(array, order="C") for name, array in checkpoint.arrays.items()}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(save_tensors(arrays, {"acdc": json.dumps(header)}))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def spec_of(path: Path) -> str | None:
    """sha256 of the job spec whose checkpoint this is, from the header alone; None where it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            return str(json.loads(file.metadata()["acdc"])["spec_sha256"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def read_checkpoint(path: Path, spec_sha256: str) -> Checkpoint:
    """Raises ValueError, which says why a search cannot resume from this file: then it starts over."""
    try:
        data = path.read_bytes()
        arrays = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["acdc"])
    except OSError as error:
        raise ValueError(f"the checkpoint cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise ValueError("the checkpoint is damaged") from None
    if header.get("format") != FORMAT or header.get("engine_version") != ENGINE_VERSION:
        raise ValueError("the checkpoint is of another engine version")
    if header["spec_sha256"] != spec_sha256:
        raise ValueError("the checkpoint is of another job spec")
    return Checkpoint(header["step"], header["facts"], arrays)
