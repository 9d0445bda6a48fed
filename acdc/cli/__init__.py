"""The command line: `acdc`. Nothing heavy is imported before a command needs it, and torch never."""

from __future__ import annotations

from acdc.cli import interrupts


def main() -> None:
    """The entry point `acdc`."""
    interrupts.end_at_once()
    from acdc.cli.app import app

    app(prog_name="acdc")


__all__ = ["main"]
