"""The command line: `acdc`. Nothing heavy is imported before a command needs it, and torch never."""

from __future__ import annotations

from acdc.cli.app import main

__all__ = ["main"]
