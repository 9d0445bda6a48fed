"""Bytes too large for rows (circuit files, checkpoints), named by their sha256, behind fsspec.

Upload first, then commit the row that names the digest: a crash between leaves an artefact that nothing names, which
`collect` removes a day later, never a name without an artefact.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Findings:
    """What `fsck` found: digests that are named and not there, that do not match their content, and the number well."""

    missing: tuple[str, ...]
    torn: tuple[str, ...]
    n_good: int


class Artefacts:
    """Open with `Artefacts.open(url)`: `file:` and a directory, a plain directory, or any other URL of fsspec."""

    @classmethod
    def open(cls, url: str) -> Artefacts:
        """Raises StorageError for a place that cannot be used."""
        raise NotImplementedError

    def put(self, data: bytes) -> str:
        """Store; returns the digest. All or nothing, and on disk when it returns. Raises StorageError (disk full)."""
        raise NotImplementedError

    def get(self, digest: str) -> bytes:
        """Raises StorageError for an artefact that is missing or does not match its digest."""
        raise NotImplementedError

    def exists(self, digest: str) -> bool:
        raise NotImplementedError

    def collect(self, in_use: Callable[[], Set[str]], *, min_age_s: float = 24 * 3600) -> tuple[str, ...]:
        """Delete what nothing names (`store.artefacts_in_use`) and what is older than `min_age_s`; returns the digests."""
        raise NotImplementedError

    def fsck(self, in_use: Set[str]) -> Findings:
        """Read every artefact that something names."""
        raise NotImplementedError
