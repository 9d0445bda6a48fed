"""What an engine process and the process that owns it say to each other: JSON lines on two dedicated pipes.

Orders go down (`Run`, `Cancel`; the end of that pipe means: die), messages come up. Every one of them names the `run`,
a number that is new for each order, so that a late message or a late cancel of one run never touches the next.
A file that a message names belongs to the receiver from then on: the engine neither changes nor removes it.
Nothing is pickled: facts are JSON, arrays safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from acdc.errors import AcdcError

# -- down --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Do `spec`. source: the stored circuit's file that an evaluate or try job names. checkpoint: the file to resume
    from. scratch: an existing directory for the files that messages name. log: where stdout and stderr are appended."""

    run: int
    spec: Mapping[str, Any]
    scratch: str
    log: str
    source: str | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Cancel:
    """Stop at the next step and answer `Stopped`."""

    run: int


# -- up ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resumed:
    """The run goes on from a checkpoint of this step."""

    run: int
    step: int


@dataclass(frozen=True)
class Phase:
    """A phase of `total` steps begins (0: unknown)."""

    run: int
    name: str
    total: int


@dataclass(frozen=True)
class Step:
    """`done` steps of the phase are done. Throttled: some are never sent."""

    run: int
    done: int
    note: str = ""


@dataclass(frozen=True)
class Log:
    """A line for people; it is in the log file too."""

    run: int
    text: str


@dataclass(frozen=True)
class Saved:
    """A checkpoint file, whole and in place."""

    run: int
    path: str
    step: int


@dataclass(frozen=True)
class Found:
    """One result. circuit, map: files of these. data: a JSON file with tables for people."""

    run: int
    key: str
    data: str
    circuit: str | None = None
    map: str | None = None


@dataclass(frozen=True)
class Done:
    """The run is over and every result was sent."""

    run: int


@dataclass(frozen=True)
class Stopped:
    """The run is over because it was cancelled."""

    run: int


@dataclass(frozen=True)
class Failed:
    """The run is over because of an error. code, message, faults: as `AcdcError.to_dict`; job_code: the job row's."""

    run: int
    code: str
    message: str
    job_code: str
    faults: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, run: int, error: AcdcError) -> Failed:
        faults = [asdict(fault) for fault in error.faults]
        return cls(run, error.code, error.message, error.job_code, faults)


Order = Run | Cancel
Message = Resumed | Phase | Step | Log | Saved | Found | Done | Stopped | Failed
_ORDERS: dict[str, type[Order]] = {kind.__name__.lower(): kind for kind in (Run, Cancel)}
_MESSAGES: dict[str, type[Message]] = {
    kind.__name__.lower(): kind for kind in (Resumed, Phase, Step, Log, Saved, Found, Done, Stopped, Failed)
}


def encode(item: Order | Message) -> bytes:
    """One line, newline included."""
    return json.dumps({"kind": type(item).__name__.lower(), **asdict(item)}, allow_nan=True).encode() + b"\n"


def decode_order(line: bytes) -> Order:
    """Raises KeyError, TypeError or ValueError for a line that is none: both ends are ours, so that is a bug."""
    data = json.loads(line)
    return _ORDERS[data.pop("kind")](**data)


def decode_message(line: bytes) -> Message:
    """Raises KeyError, TypeError or ValueError for a line that is none: both ends are ours, so that is a bug."""
    data = json.loads(line)
    return _MESSAGES[data.pop("kind")](**data)
