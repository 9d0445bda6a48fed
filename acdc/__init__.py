"""Automated circuit discovery: find, judge, store and compare circuits of transformer language models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from acdc.version import __version__

if TYPE_CHECKING:
    from acdc.library import discover, patch

_FROM_LIBRARY = ("discover", "patch")
__all__ = ["__version__", "discover", "patch"]


def __getattr__(name: str) -> Any:
    """What needs torch loads it when it is first asked for, so that `import acdc` does not."""
    if name in _FROM_LIBRARY:
        return getattr(importlib.import_module("acdc.library"), name)
    raise AttributeError(f"module 'acdc' has no attribute {name!r}")
