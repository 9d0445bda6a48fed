"""The command line: `acdc`. Nothing heavy is imported before a command needs it, and torch never."""

from __future__ import annotations

from acdc.cli import interrupts


def main() -> None:
    interrupts.note()
    try:
        from acdc.cli.app import main as run

        run()
    except KeyboardInterrupt:
        interrupts.end()


__all__ = ["main"]
