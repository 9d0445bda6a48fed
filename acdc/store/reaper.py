"""What nobody else will end: leases that ran out, jobs that waited or ran too long."""

from __future__ import annotations

from acdc.store.claims import LEASE_S
from acdc.store.database import Database
from acdc.store.rows import Reaped

SWEEP_S = 5.0


class Reaper:
    def __init__(self, database: Database) -> None:
        self._database = database

    def sweep(self, *, sweep_s: float = SWEEP_S, lease_s: float = LEASE_S) -> Reaped:
        """Requeue (or cancel) jobs whose lease ran out; fail those beyond max_queue_s or max_runtime_s as `timeout`.

        Any number of processes may call it, each about every `sweep_s`. When all of them have been silent for more than
        two sweeps (the database was away, say), leases may have run out with their workers alive: then it leaves them
        alone for one lease.
        """
        raise NotImplementedError
