"""A running search on stderr: one bar a phase on a terminal, elsewhere a line a phase and one a minute,
nothing with --json."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from acdc.cli.console import errors, session

LINE_EVERY_S = 60.0  # where no bar can be drawn


class LiveProgress:
    """Phases may come twice, as after a resumed attempt: then the bar starts again."""

    def __init__(self) -> None:
        console = errors()
        self._quiet = session().as_json
        self._bar: Progress | None = None
        if console.is_terminal and not self._quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", style="dim"),
                console=console,
                transient=True,
            )
        self._console = console
        self._phase: str | None = None
        self._said = 0.0  # when the last line was
        self._task: TaskID | None = None

    def __enter__(self) -> LiveProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, phase: str, done: int, total: int, note: str = "") -> None:
        """total 0: unknown."""
        if phase != self._phase:
            self._begin(phase, total)
        count = f"{done:,}/{total:,}" if total else f"{done:,}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total or None, count=count, note=note)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._say_now(f"{phase}: {count} {note}".rstrip())

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            (self._bar.console if self._bar else self._console).print(text, soft_wrap=True)

    def _say_now(self, text: str) -> None:
        self._said = time.monotonic()
        self.say(text)

    def _begin(self, phase: str, total: int) -> None:
        self._phase = phase
        if self._bar is None:
            self._say_now(f"{phase} …")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        fields: dict[str, Any] = {"count": "", "note": ""}
        self._task = self._bar.add_task(phase, total=total or None, **fields)
