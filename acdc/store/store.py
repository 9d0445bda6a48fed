"""The store: one object per process, safe to share between threads."""

from __future__ import annotations

from acdc.store.circuits import Circuits, Models
from acdc.store.claims import Claims
from acdc.store.database import Database
from acdc.store.jobs import Jobs
from acdc.store.reaper import Reaper


class Store:
    """jobs: for users. claims: for workers. reaper: for the sweep. circuits, models: what was found, of what."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.jobs = Jobs(database)
        self.claims = Claims(database)
        self.reaper = Reaper(database)
        self.circuits = Circuits(database)
        self.models = Models(database)

    @classmethod
    def open(cls, url: str) -> Store:
        """`sqlite:///acdc.db` or `postgresql://user@host/name`.

        Raises DatabaseError when it is unreachable, SchemaMismatch when it is not at this code's schema: see `migrate`.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close its connections."""
        raise NotImplementedError

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ping(self) -> None:
        """Raises DatabaseError when the database does not answer."""
        raise NotImplementedError

    def artefacts_in_use(self) -> frozenset[str]:
        """Digests that a circuit or a job's checkpoint names."""
        raise NotImplementedError
