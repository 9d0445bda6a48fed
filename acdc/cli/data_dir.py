"""Who serves from a data directory, so that nobody empties it under a running service.

DATA_DIR/serving/*.lock     held by every `acdc serve` on it; one that has died, also by kill -9, holds nothing
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from acdc.models.inventory import Lease, is_held

_LEASES = "serving"


@contextlib.contextmanager
def serving(data_dir: Path) -> Iterator[None]:
    """Say so for as long as the block runs. Several services may share a directory. One that was never made, or that
    cannot be written, is no place where this service keeps anything: its database and artefacts are elsewhere."""
    lease = _lease(data_dir)
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


def _lease(data_dir: Path) -> Lease | None:
    if not data_dir.is_dir():
        return None
    try:
        (data_dir / _LEASES).mkdir(exist_ok=True)
        return Lease(data_dir / _LEASES / f"{uuid.uuid4().hex}.lock")
    except OSError:
        return None


def is_served(data_dir: Path) -> bool:
    """Whether a service is running on this directory."""
    return any(is_held(path) for path in (data_dir / _LEASES).glob("*.lock"))
