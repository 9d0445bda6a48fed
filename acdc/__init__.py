"""Automated circuit discovery: find, judge, store and compare circuits of transformer language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from acdc.version import __version__

if TYPE_CHECKING:
    from acdc.library import discover

__all__ = ["__version__", "discover"]


def __getattr__(name: str) -> Any:
    """`acdc.discover` loads torch when it is first asked for, so that `import acdc` does not."""
    if name == "discover":
        return importlib.import_module("acdc.library").discover
    raise AttributeError(f"module 'acdc' has no attribute {name!r}")
