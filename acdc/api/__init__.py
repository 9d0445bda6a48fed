"""The HTTP API: thin routes over the store. No work at import, and never torch."""

from __future__ import annotations

from acdc.api.app import create_app

__all__ = ["create_app"]
