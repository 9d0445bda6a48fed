"""Bytes too large for rows (circuit files, checkpoints), named by their sha256, behind fsspec.

Upload first, then commit the row that names the digest: a crash between leaves an artefact that nothing names, which
`collect` removes a day later, never a name without an artefact.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from acdc.errors import StorageError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Findings:
    """What `fsck` found: digests that are named and not there, that do not match their content; how many are well."""

    missing: tuple[str, ...]
    torn: tuple[str, ...]
    n_good: int


class Artefacts:
    """Open with `Artefacts.open(url)`. Safe to share between threads and processes: a digest's bytes never change."""

    def __init__(self, files: Any, root: str) -> None:
        self._files = files  # an fsspec file system
        self._root = root.rstrip("/")
        self._is_local = "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,))

    @classmethod
    def open(cls, url: str) -> Artefacts:
        """`file:` and a directory, a plain directory, or another URL that fsspec knows. Raises StorageError for a place
        that cannot be used."""
        try:
            files, root = url_to_fs(url)
            with _storage_errors(url):
                files.makedirs(root, exist_ok=True)
        except (ValueError, ImportError) as error:
            raise StorageError(f"no place for artefacts: {url}: {error}") from None
        return cls(files, root)

    def put(self, data: bytes) -> str:
        """Store; returns the digest. All or nothing, and on disk when it returns. Raises StorageError (disk full).

        What is there already is written again: that mends a torn artefact, and makes it too young for `collect`.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        with _storage_errors(path):
            if self._is_local:
                _write_durably(Path(path), data)
            else:
                self._files.pipe_file(path, data)  # object stores: visible when whole
        return digest

    def get(self, digest: str) -> bytes:
        """Raises StorageError for an artefact that is missing or does not match its digest."""
        data = self._read(digest)
        if data is None:
            raise StorageError(f"artefact {digest} is missing from {self._root}; restore it from a backup")
        if hashlib.sha256(data).hexdigest() != digest:
            raise StorageError(f"artefact {digest} in {self._root} is damaged; restore it from a backup")
        return data

    def exists(self, digest: str) -> bool:
        with _storage_errors(self._root):
            return bool(self._files.exists(self._path(digest)))

    def collect(self, in_use: Callable[[], Set[str]], *, min_age_s: float = 24 * 3600) -> tuple[str, ...]:
        """Delete what nothing names (`store.artefacts_in_use`) and is older than `min_age_s`; returns the digests.

        Half-written files of that age go too. The age is what protects an upload whose commit is still to come.
        """
        before = datetime.now(UTC) - timedelta(seconds=min_age_s)
        with _storage_errors(self._root):
            self._files.invalidate_cache()
            old = [path for path in self._files.find(self._root) if self._modified(path) < before]
            named = in_use()  # asked after the listing: what is committed meanwhile counts
            unnamed = [path for path in old if self._is_ours(path) and _name(path) not in named]
            gone = [path for path in unnamed if self._remove_older(path, before)]
        return tuple(sorted(_name(path) for path in gone if _DIGEST.fullmatch(_name(path))))

    def fsck(self, in_use: Set[str]) -> Findings:
        """Read every artefact that something names."""
        missing, torn = [], []
        for digest in sorted(in_use):
            data = self._read(digest)
            if data is None:
                missing.append(digest)
            elif hashlib.sha256(data).hexdigest() != digest:
                torn.append(digest)
        return Findings(tuple(missing), tuple(torn), len(in_use) - len(missing) - len(torn))

    def _read(self, digest: str) -> bytes | None:
        with _storage_errors(self._root):
            try:
                return bytes(self._files.cat_file(self._path(digest)))
            except FileNotFoundError:
                return None

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):  # it becomes a path: nothing else may
            raise StorageError(f"{digest[:100]!r} is no digest of an artefact: 64 hexadecimal digits")
        return f"{self._root}/{digest[:2]}/{digest}"

    def _modified(self, path: str) -> datetime:
        """The moment of the last write; now for what is just being renamed or deleted."""
        try:
            modified: datetime = self._files.modified(path)
        except FileNotFoundError:
            return datetime.now(UTC)
        return modified if modified.tzinfo else modified.replace(tzinfo=UTC)

    def _remove_older(self, path: str, before: datetime) -> bool:
        """Whether it went. What was put again since the listing is young; what is gone another collector took."""
        if self._modified(path) >= before:
            return False
        try:
            self._files.rm_file(path)
        except FileNotFoundError:
            return False
        return True

    def _is_ours(self, path: str) -> bool:
        return _DIGEST.fullmatch(_name(path).partition(".")[0]) is not None


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _write_durably(path: Path, data: bytes) -> None:
    """Bytes, then name, each on disk before the next: a reader sees all of it or nothing, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _storage_errors(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(f"no space left for {place}; free some and try again") from error
        raise StorageError(f"{place}: {error.strerror or error}") from error
