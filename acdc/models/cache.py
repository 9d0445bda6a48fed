"""Models for one engine process: fetched into the host's cache when first asked for, and a few kept in memory."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from acdc.models.allowed import AllowList
from acdc.models.fetch import Fetcher
from acdc.models.hub import Hub, HuggingFaceHub
from acdc.models.inventory import DiskUsage, Inventory, Lease
from acdc.models.loading import Loaded, choose_device, load_local
from acdc.models.reference import Reference
from acdc.progress import Progress, Quiet


class ModelCache:
    """directory: the host's cache, shared by all processes. quota_bytes: its size limit. allowed: the server's limits.

    device: where `auto` puts models. keep: how many loaded models stay in memory; the least recently used one leaves.
    A model that is in memory is not evicted from the disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        quota_bytes: int | None = None,
        allowed: AllowList | None = None,
        device: str = "auto",
        keep: int = 1,
        hub: Hub | None = None,
        disk_usage: Callable[[Path], DiskUsage] = shutil.disk_usage,
    ) -> None:
        self.inventory = Inventory(directory, quota_bytes=quota_bytes, disk_usage=disk_usage)
        self._fetcher = Fetcher(self.inventory, hub or HuggingFaceHub())
        self._allowed = allowed or AllowList()
        self._device = device
        self._keep = keep
        self._warm: OrderedDict[tuple[str, str, str], tuple[Loaded, Lease]] = OrderedDict()
        self._lock = threading.Lock()

    def load(
        self, reference: Reference, *, dtype: str = "float32", device: str = "auto", progress: Progress | None = None
    ) -> Loaded:
        """The model, from memory if it is there.

        Raises Forbidden, UnknownModel, UnsupportedModel, BadWeights, StorageError, ServiceError, OutOfMemory and
        Cancelled.
        """
        progress = progress or Quiet()
        self._allowed.check(reference)
        place = choose_device(self._device if device == "auto" else device)
        with self._lock:
            local, lease = self._fetcher.fetch(reference, progress)
            slot = (local.key, dtype, place)
            if slot in self._warm:
                lease.release()
                self._warm.move_to_end(slot)
                return self._warm[slot][0]
            self._shrink_to(self._keep - 1)  # first, so that two models need not fit at a time
            progress.phase("loading the model", 1)
            try:
                loaded = load_local(local, dtype, place)
            except BaseException:
                lease.release()
                raise
            self._warm[slot] = (loaded, lease)
            progress.step(1)
            return loaded

    def close(self) -> None:
        """Forget the loaded models, so that others may evict them."""
        with self._lock:
            self._shrink_to(0)

    def _shrink_to(self, n_models: int) -> None:
        while len(self._warm) > max(n_models, 0):
            _, (_, lease) = self._warm.popitem(last=False)
            lease.release()
