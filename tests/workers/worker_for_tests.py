"""`python -m workers.worker` with the counting engine."""

from __future__ import annotations

import sys

from workers_kit import ENGINE

from workers.worker import main

if __name__ == "__main__":
    sys.exit(main(engine=ENGINE))
