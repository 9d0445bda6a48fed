from __future__ import annotations

from acdc.cli.app import main

main()
