"""What routes work with: the settings, the store and the artefacts of one app."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Query
from starlette.requests import Request

from acdc.circuit import Circuit
from acdc.errors import NotFound
from acdc.patch_map import PatchMap
from acdc.settings import Settings
from acdc.store import Artefacts, Store

USER = "local"  # one key, one user
_CACHED_CIRCUITS = _CACHED_MAPS = 4  # a page of the explorer reads the same one several times


@dataclass(frozen=True)
class Services:
    """closing: set when the server is about to stop, so that event streams end."""

    settings: Settings
    store: Store
    artefacts: Artefacts
    closing: threading.Event = field(default_factory=threading.Event)

    def circuit(self, circuit_id: str) -> Circuit:
        """The whole stored circuit. Raises NotFound, StorageError."""
        return self._circuit_of_artefact(self.store.circuits.get(circuit_id).row.artefact)

    def patch_map(self, map_id: str) -> PatchMap:
        """The whole stored map. Raises NotFound, StorageError."""
        return self._map_of_artefact(self.store.maps.get(map_id).row.artefact)

    @functools.cached_property
    def _map_of_artefact(self) -> Callable[[str], PatchMap]:
        return functools.lru_cache(_CACHED_MAPS)(lambda digest: PatchMap.from_bytes(self.artefacts.get(digest)))

    @functools.cached_property
    def _circuit_of_artefact(self) -> Callable[[str], Circuit]:
        """Artefacts are named by their content, so what is cached cannot be stale."""
        return functools.lru_cache(_CACHED_CIRCUITS)(lambda digest: Circuit.from_bytes(self.artefacts.get(digest)))


def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Deps = Annotated[Services, Depends(_services)]


def checked_id(kind: str, value: str) -> str:
    """An id that cannot be one never reaches the database."""
    if not re.fullmatch(r"[a-z]{1,20}_[0-9a-z]{1,60}", value):
        raise NotFound(
            f"no {kind} {value[:80]!r}: that is not an id; `acdc {kind}s list` and GET /v1/{kind}s list them"
        )
    return value


def _job_id(job_id: str) -> str:
    return checked_id("job", job_id)


def _circuit_id(circuit_id: str) -> str:
    return checked_id("circuit", circuit_id)


def _map_id(map_id: str) -> str:
    return checked_id("map", map_id)


Cursor = Annotated[str | None, Query(max_length=1000)]
JobId = Annotated[str, Depends(_job_id)]
CircuitId = Annotated[str, Depends(_circuit_id)]
MapId = Annotated[str, Depends(_map_id)]
