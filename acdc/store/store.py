"""The store: one object per process, safe to share between threads."""

from __future__ import annotations

from sqlalchemy import select

from acdc.store.circuits import Circuits
from acdc.store.claims import Claims
from acdc.store.database import Database
from acdc.store.jobs import Jobs
from acdc.store.maps import Maps
from acdc.store.migration import check_schema
from acdc.store.models import Models
from acdc.store.reaper import Reaper
from acdc.store.tables import circuits, jobs, maps


class Store:
    """jobs: for users. claims: for workers. reaper: for the sweep. circuits, maps, models: what was found, of what."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.jobs = Jobs(database)
        self.claims = Claims(database)
        self.reaper = Reaper(database)
        self.circuits = Circuits(database)
        self.maps = Maps(database)
        self.models = Models(database)

    @classmethod
    def open(cls, url: str) -> Store:
        """`sqlite:///acdc.db` or `postgresql://user@host/name`.

        Raises DatabaseError when it is unreachable, SchemaMismatch when it is not at this code's schema: see `migrate`.
        """
        database = Database(url)
        database.must_exist()
        try:
            with database.read() as connection:
                check_schema(connection, database.label)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Close its connections."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def ping(self) -> None:
        """Raises DatabaseError when the database does not answer."""
        with self._database.read() as connection:
            connection.execute(select(1))

    def artefacts_in_use(self) -> frozenset[str]:
        """Digests that a circuit, a map or a job's checkpoint names."""
        named = select(circuits.c.artefact).union(
            select(maps.c.artefact),
            select(jobs.c.checkpoint_digest).where(jobs.c.checkpoint_digest.is_not(None)),
        )
        with self._database.read() as connection:
            return frozenset(connection.execute(named).scalars())
