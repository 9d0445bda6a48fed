"""Progress where no bar can be drawn, as in a log file."""

from __future__ import annotations

import pytest

from acdc.cli import live
from acdc.cli.live import LiveProgress


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_long_phase_is_told_of_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(live.time, "monotonic", lambda: now)
    with LiveProgress() as progress:
        for done in range(200):
            now += 1.0
            progress.show("acdc", done, 70_651, "9.6.q")
    assert said(capsys) == ["acdc …", "acdc: 60/70,651 9.6.q", "acdc: 120/70,651 9.6.q", "acdc: 180/70,651 9.6.q"]


def test_short_phases_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveProgress() as progress:
        for phase in ("parity", "search"):
            for done in range(3):
                progress.show(phase, done, 0)
    assert said(capsys) == ["parity …", "search …"]
