"""Where commands write: results on stdout, everything else on stderr. Plain text where it is no terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from acdc import numerals
from acdc.cli import interrupts
from acdc.errors import SpecError

if TYPE_CHECKING:
    from acdc.client import Client

PLAIN_WIDTH = 10_000  # of tables, where there is no terminal: a row stays in one line, for grep and cut


@dataclass
class Session:
    """What the options before the command's name say, and whether this command answers in JSON."""

    url: str | None = None
    api_key: str | None = None
    debug: bool = False
    as_json: bool = False


_session = Session()


def session() -> Session:
    return _session


def begin(url: str | None, api_key: str | None, debug: bool) -> None:
    """A new command line. The one piece of state of this package: a process runs one command."""
    global _session
    _session = Session(url, api_key, debug)


def _note_json(value: bool) -> bool:
    """Errors must know it too, so it is noted as soon as it is read."""
    _session.as_json = value
    return value


Json = Annotated[bool, typer.Option("--json", help="answer as JSON, for programs", callback=_note_json)]


def output() -> Console:
    return _console(sys.stdout)


def errors() -> Console:
    """For errors, progress and remarks."""
    return _console(sys.stderr)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would end the program here, as if it had failed."""
        raise BrokenPipeError


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else PLAIN_WIDTH
    return _Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def answer(data: Any, people: Callable[[], RenderableType | Iterable[RenderableType]]) -> None:
    """Print `data` as JSON if that was asked for, else what `people` gives."""
    if session().as_json:
        sys.stdout.write(json.dumps(data, ensure_ascii=False, allow_nan=False, default=str) + "\n")
        sys.stdout.flush()
        return
    shown = people()
    for part in [shown] if isinstance(shown, str | Text | Table) or hasattr(shown, "__rich__") else shown:  # type: ignore[union-attr]
        output().print(part, soft_wrap=isinstance(part, str))


def remark(text: str) -> None:
    """For people only, on stderr: never part of an answer."""
    if not session().as_json:
        errors().print(text, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None) -> Table:
    """A column whose name starts with `#` holds numbers. The first column, which names the row, is never broken: an id
    or a name must be copied in one piece.
    """
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        grid.add_column(
            column.removeprefix("#"),
            justify="right" if column.startswith("#") else "left",
            overflow="fold",
            no_wrap=place == 0,
        )
    for row in rows:
        grid.add_row(*(number(cell) for cell in row))
    return grid


def number(value: Any) -> str:
    """Three digits are enough for people; nothing is a dash."""
    if value is None:
        return "-"
    return numerals.figure(value) if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """In the unit that people would say it in."""
    return "-" if seconds is None else numerals.duration(seconds)


def moment(timestamp: str | None) -> str | None:
    """An ISO 8601 time to the minute, in its own zone."""
    return timestamp and timestamp[:16].replace("T", " ")


def connect() -> Client:
    """A client of the service that the options or the environment name."""
    from acdc.client import Client
    from acdc.settings import load_settings

    settings = load_settings()
    key = session().api_key or (settings.api_key.get_secret_value() if settings.api_key else None)
    interrupts.raise_from_now_on()
    return Client(session().url or settings.url, key)


def write_file(path: Path, data: bytes | str) -> Path:
    """Raises SpecError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise SpecError(f"{path}: cannot be written: {error.strerror}; name another file") from None
    return path


def read_file(path: Path) -> bytes:
    """Raises SpecError where the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None


def mapping_of(items: Mapping[str, Any], *keys: str) -> list[Any]:
    return [items.get(key) for key in keys]
