from __future__ import annotations

from acdc.cli import main

main()
