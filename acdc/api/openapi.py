"""Write the OpenAPI file that the repository carries: `python -m acdc.api.openapi`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from acdc.api.app import build_routes

PATH = Path("docs/reference/openapi.json")


def openapi_text() -> str:
    """The file's content: the same routes give the same bytes."""
    return json.dumps(build_routes().openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(openapi_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
