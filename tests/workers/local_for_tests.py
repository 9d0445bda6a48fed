"""`python -m workers.local` with the counting engine."""

from __future__ import annotations

import sys

from workers_kit import ENGINE

from workers.local import main

if __name__ == "__main__":
    sys.exit(main(engine=ENGINE))
