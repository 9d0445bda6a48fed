"""Makes tests/engine/tiny_transformers.py importable from every engine test, and lets time stand still for some."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from acdc.discovery.chain import Pace

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long batches take has no say in how many rows they have."""
    monkeypatch.setattr(Pace, "took", lambda *_: None)
