"""Each test of the command line is a new command line."""

from __future__ import annotations

import pytest

from acdc.cli import console


@pytest.fixture(autouse=True)
def _a_new_command_line() -> None:
    """Whether the command before answered in JSON is a process's state, and here many commands share one."""
    console.begin(None, None, debug=False)
