"""What several checks find, so that it can be told together: a fault that is told first would hide the others."""

from __future__ import annotations

from collections.abc import Callable

from acdc.errors import AcdcError, Fault


def faults_raised(check: Callable[[], object]) -> tuple[Fault, ...]:
    """The faults of the error that a check raises, its message where it lists none; nothing where it passes."""
    try:
        check()
    except AcdcError as error:
        return error.faults or (Fault("", error.message),)
    return ()
