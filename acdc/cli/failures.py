"""The edge of every command: one clear message instead of a traceback, and an exit code that scripts can rely on.

0    done
1    a bug in this program (`acdc --debug …` shows where)
2    the request is wrong: command line, spec, file, model, task or id
3    the job ended as failed
4    no answer: no service, no database, no disk, no free port
5    refused: no key, not allowed, or not possible in this state
130  cancelled, by Ctrl-C or by somebody else
141  who read the output went away, like `head`

What the engine finds out after `acdc run` has begun is a failed job, as with a service: 3.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import typer
import typer.core

from acdc.cli.console import errors, session
from acdc.errors import (
    AcdcError,
    Cancelled,
    Conflict,
    DatabaseError,
    Fault,
    Forbidden,
    IdempotencyConflict,
    OutOfMemory,
    ServiceError,
    StorageError,
    Unauthorized,
)

BUG, WRONG, FAILED, NO_ANSWER, REFUSED, CANCELLED, READER_GONE = 1, 2, 3, 4, 5, 130, 141
_NO_ANSWER = (ServiceError, DatabaseError, StorageError, OutOfMemory)
_REFUSED = (Unauthorized, Forbidden, Conflict, IdempotencyConflict)


class JobFailed(AcdcError):
    """The job that a command waited for ended as failed. ways_on: what to type next."""

    code = "job_failed"

    def __init__(self, message: str, faults: Iterable[Fault] = (), ways_on: str = "") -> None:
        super().__init__(message, faults)
        self.ways_on = ways_on


def exit_code(error: AcdcError) -> int:
    """See the table above."""
    if isinstance(error, JobFailed):
        return FAILED
    if isinstance(error, Cancelled):
        return CANCELLED
    if isinstance(error, _NO_ANSWER):
        return NO_ANSWER
    if isinstance(error, _REFUSED):
        return REFUSED
    return BUG if type(error) is AcdcError else WRONG


class Edge(typer.core.TyperGroup):
    """The outermost group: nothing that a command raises goes further."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            errors().print("interrupted")
            raise typer.Exit(CANCELLED) from None
        except AcdcError as error:
            _tell(error, "cancelled" if isinstance(error, Cancelled) else "error")
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:
            # What is flushed at the end must find an open file: the reader went away.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(READER_GONE) from None
        except Exception as error:
            if _is_usage_error(error):
                raise
            bug = AcdcError(f"this is a bug in acdc ({type(error).__name__}: {error}); `acdc --debug …` shows where")
            _tell(bug, "error")
            raise typer.Exit(BUG) from None


def _is_usage_error(error: Exception) -> bool:
    """typer prints its own: a wrong option, a missing argument. Its class is not public, its exit code is."""
    return isinstance(getattr(error, "exit_code", None), int) and hasattr(error, "format_message")


def _tell(error: AcdcError, title: str) -> None:
    if session().debug:
        traceback.print_exc(file=sys.stderr)
    if session().as_json:
        import json

        errors().print(json.dumps({"error": error.to_dict()}), soft_wrap=True)
        return
    errors().print(f"{title}: {error.message}", style="red", soft_wrap=True)
    for fault in error.faults:
        errors().print(f"  - {fault}", soft_wrap=True)
    if isinstance(error, JobFailed) and error.ways_on:
        errors().print(error.ways_on, soft_wrap=True)
