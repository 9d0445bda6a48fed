"""One file for arrays and what they mean: safetensors, with a JSON header and a checksum over both. Torch-free.

The same content gives the same bytes; what is read equals what was written to the bit; nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from acdc.errors import AcdcError

Arrays = Mapping[str, npt.NDArray[np.generic]]


def pack(header: Mapping[str, Any], arrays: Arrays) -> bytes:
    """header: with its `format`. The order of `arrays` is part of the checksum."""
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values()))
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    digest.update(text.encode())
    # One entry of metadata: safetensors writes several in any order, and equal contents would differ.
    metadata = {"acdc": json.dumps({"sha256": digest.hexdigest(), "header": text})}
    return save_tensors(dict(arrays), metadata)


def unpack(
    data: bytes,
    name: str,
    *,
    what: str,
    file_format: str,
    arrays: Collection[str],
    error: type[AcdcError],
    optional: Collection[str] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays. what: circuit, map, ...; arrays: the names of those it must hold, in the order of `pack`;
    optional: of those that may follow them.

    Raises `error` for a file that is damaged, foreign, or of a version that this code does not know.
    """
    foreign = error(f"{name}: no {what} file of this program (expected a safetensors file marked {file_format})")
    try:
        found = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError):
        raise error(
            f"{name}: damaged or no safetensors file at all; a {what} is read from its .safetensors file alone"
        ) from None
    if "acdc" not in metadata or not set(arrays) <= set(found) <= {*arrays, *optional}:
        raise foreign
    digest = hashlib.sha256(b"".join(found[key].tobytes() for key in (*arrays, *optional) if key in found))
    try:
        marked = json.loads(metadata["acdc"])
        text = str(marked["header"])
        header = json.loads(text)
        version = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise foreign from None
    digest.update(text.encode())
    if digest.hexdigest() != marked.get("sha256"):
        raise error(f"{name}: its content does not match its checksum; export it again")
    if version != file_format:
        raise error(f"{name}: format {version!r}; this version reads {file_format}")
    return header, found


def read_file(path: Path, error: type[AcdcError]) -> bytes:
    """Raises `error` for a file that is not there or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
