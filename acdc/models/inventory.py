"""The model cache on disk: what is in it, who uses it, what goes first when it is full. Torch-free.

    models/KEY/             a finished model: config, tokenizer, safetensors, and `acdc-model.json` beside them
    partial/KEY/            a model being made; only the holder of the lock writes here, leftovers are thrown away
    references/HASH.json    the revision that a reference was pinned to
    locks/KEY.lock          held while a model is fetched, converted or removed
    leases/KEY/*.lock       held by every process that has the model loaded; a dead process holds nothing

A directory appears under `models` by one rename, so that whatever is there is whole. Locks are the operating
system's: they end with the process that held them, also by kill -9.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from acdc.errors import StorageError
from acdc.progress import Progress

METADATA = "acdc-model.json"
POLL_S = 0.2  # how often someone who waits for a lock asks whether to stop


@dataclass(frozen=True)
class LocalModel:
    """A model on this host, in safetensors form.

    directory: where config, tokenizer and weights are; outside the cache for `path:` references. pinned: what exactly
    the reference was resolved to (a commit, or the sha256 of a file). size_bytes: what the cache holds of it.
    same_as: references that were found earlier and have the same fingerprint.
    """

    key: str
    reference: str
    pinned: str
    directory: str
    title: str
    model_type: str
    n_parameters: int
    fingerprint: str
    tokenizer_sha256: str
    quantisation: str | None
    tuning: str | None
    size_bytes: int
    same_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """A line of `acdc models`. last_use: seconds since the epoch."""

    model: LocalModel
    last_use: float
    is_in_use: bool


class DiskUsage(Protocol):
    """Like `shutil.disk_usage`: only `free` is read."""

    @property
    def free(self) -> int: ...


@dataclass(frozen=True)
class Pin:
    """What a reference was resolved to, once and for all."""

    reference: str
    revision: str


class Inventory:
    """The cache in `directory`. quota_bytes: None for no limit. disk_usage: asked for free space before writing."""

    def __init__(
        self,
        directory: Path,
        *,
        quota_bytes: int | None = None,
        disk_usage: Callable[[Path], DiskUsage] = shutil.disk_usage,
    ) -> None:
        self.directory = directory.absolute()
        self.quota_bytes = quota_bytes
        self._disk_usage = disk_usage

    # -- what is there -------------------------------------------------------------------------------------------------

    def find(self, key: str) -> LocalModel | None:
        """A finished model; None where there is none, or where its description is of another layout."""
        try:
            data = json.loads((self._models / key / METADATA).read_text())
            return LocalModel(**{**data, "same_as": tuple(data["same_as"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def list(self) -> list[Listed]:
        """All finished models, the one used last first."""
        listed = []
        for path in self._models.glob("*"):
            model = self.find(path.name)
            if model is not None:
                listed.append(Listed(model, self._last_use(path.name), self._is_leased(path.name)))
        return sorted(listed, key=lambda line: -line.last_use)

    def pin(self, reference: str) -> Pin | None:
        """What the reference was resolved to the first time, if ever."""
        try:
            return Pin(**json.loads(self._pin_path(reference).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def record_pin(self, pin: Pin) -> None:
        _write_atomically(self._pin_path(pin.reference), json.dumps(asdict(pin)))

    # -- who uses it ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, key: str, progress: Progress) -> Iterator[None]:
        """Hold a model's lock. While another process holds it, `progress` is asked whether to go on waiting."""
        lock = FileLock(_made(self.directory / "locks") / f"{key}.lock")
        said = False
        while True:
            try:
                lock.acquire(timeout=POLL_S)
                break
            except Timeout:
                if not said:
                    progress.phase("waiting for another process that prepares this model", 0)
                    said = True
                progress.step(0)
        try:
            yield
        finally:
            lock.release()

    def lease(self, key: str) -> Lease:
        """Keep the model from being evicted until the lease is released. Take it while holding the model's lock."""
        directory = _made(self.directory / "leases" / key)
        for path in directory.glob("*.lock"):
            if not is_held(path):
                path.unlink(missing_ok=True)  # its process is gone
        return Lease(directory / f"{uuid.uuid4().hex}.lock")

    def touch(self, key: str) -> None:
        """Note that the model was used now."""
        os.utime(self._models / key / METADATA)

    # -- making room and putting in ------------------------------------------------------------------------------------

    def make_room(self, need_bytes: int, progress: Progress) -> None:
        """Make `need_bytes` fit, quota and disk. Raises StorageError that says what is needed, free and where."""
        if self.quota_bytes is not None:
            self._evict_down_to(self.quota_bytes - need_bytes, progress)
            held = self._held_bytes()
            if held + need_bytes > self.quota_bytes:
                raise StorageError(
                    f"the model needs {need_bytes:,} bytes in {self.directory}, whose quota is {self.quota_bytes:,} "
                    f"bytes with {held:,} in use; raise the quota, or let running jobs end"
                )
        free = self._disk_usage(_made(self.directory)).free
        if free < need_bytes:
            self._sweep_partials()
            free = self._disk_usage(self.directory).free
        if free < need_bytes:
            raise StorageError(
                f"the model needs {need_bytes:,} bytes in {self.directory}, where {free:,} are free; "
                "free some space, or put the cache elsewhere"
            )

    def fresh_partial(self, key: str) -> Path:
        """An empty directory to make a model in. The caller holds the model's lock."""
        path = self.kept_partial(key)
        shutil.rmtree(path)
        path.mkdir()
        return path

    def kept_partial(self, key: str) -> Path:
        """The same, with what an interrupted download left: it goes on from there."""
        return _made(self.directory / "partial" / key)

    def drop_partial(self, key: str) -> None:
        shutil.rmtree(self.directory / "partial" / key, ignore_errors=True)

    def install(self, partial: Path, model: LocalModel) -> LocalModel:
        """Make a finished directory visible, by one rename. The caller holds the model's lock."""
        _write_atomically(partial / METADATA, json.dumps(asdict(model), indent=1))
        for path in partial.iterdir():
            _sync(path)
        target = _made(self._models) / model.key
        shutil.rmtree(target, ignore_errors=True)  # of another layout, else it had been found
        partial.rename(target)
        _sync(self._models)
        return model

    def model_directory(self, key: str) -> Path:
        """Where a finished model's files are, or will be."""
        return self._models / key

    def _evict_down_to(self, limit_bytes: int, progress: Progress) -> None:
        if self._held_bytes() > limit_bytes:
            self._sweep_partials()
        for listed in reversed(self.list()):
            if self._held_bytes() <= limit_bytes:
                return
            if self._remove(listed.model.key):
                progress.log(f"removed {listed.model.reference} from the model cache to make room")

    def _remove(self, key: str) -> bool:
        """Remove a model unless someone prepares or uses it; says whether it is gone."""
        with self._free(key) as is_free:
            if not is_free or self._is_leased(key):
                return False
            # Out of `models` by one rename first: a removal cut short must not leave a torn model there.
            doomed = _made(self.directory / "partial") / f"removed-{uuid.uuid4().hex}"
            (self._models / key).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            shutil.rmtree(self.directory / "leases" / key, ignore_errors=True)
            return True

    def _sweep_partials(self) -> None:
        """Throw away what interrupted preparations left."""
        for path in (self.directory / "partial").glob("*"):
            with self._free(path.name) as is_free:
                if is_free:
                    shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _free(self, key: str) -> Iterator[bool]:
        """Hold the model's lock if nobody does; yields whether that worked."""
        lock = FileLock(_made(self.directory / "locks") / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _is_leased(self, key: str) -> bool:
        return any(is_held(path) for path in (self.directory / "leases" / key).glob("*.lock"))

    def _held_bytes(self) -> int:
        return directory_bytes(self._models) + directory_bytes(self.directory / "partial")

    def _last_use(self, key: str) -> float:
        try:
            return (self._models / key / METADATA).stat().st_mtime
        except OSError:
            return 0.0

    @property
    def _models(self) -> Path:
        return self.directory / "models"

    def _pin_path(self, reference: str) -> Path:
        return _made(self.directory / "references") / f"{hashlib.sha256(reference.encode()).hexdigest()[:32]}.json"


class Lease:
    """Says that this process uses something, a model for one, until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path, thread_local=False)
        self._lock.acquire()

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        self._lock.release()


def is_held(path: Path) -> bool:
    """Whether a running process holds the lease at `path`."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def list_local(directory: Path) -> list[Listed]:
    """What the cache in `directory` holds, the model used last first."""
    return Inventory(directory).list()


def directory_bytes(path: Path) -> int:
    """The sizes of all files below `path`; files that vanish meanwhile count nothing."""
    total = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            total += 0 if file.is_dir() else file.lstat().st_size
    return total


@contextlib.contextmanager
def full_disk_named(path: Path, need_bytes: int) -> Iterator[None]:
    """Turn a full disk met while writing below `path` into StorageError.

    The writers of weights report it in their own types: torch and safetensors put the system's message into theirs.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        raise StorageError(
            f"the disk became full while writing {path}: {need_bytes:,} bytes are needed, {free:,} are free"
        ) from error


def _is_full_disk(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error) or _is_full_disk(error.__cause__)


def _made(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the model cache cannot make {path}: {error.strerror}") from None
    return path


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


def _sync(path: Path) -> None:
    """Have a file's or directory's content on the disk before it is relied upon."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
