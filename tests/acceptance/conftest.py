from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_kit import Stack, quick, slow, write_model

from acdc.circuit import Circuit
from acdc.client import Job
from acdc.models.cache import ModelCache
from acdc.pipeline import run_on
from acdc.progress import Quiet
from acdc.spec import parse_job, reference_of


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One service for all tests that do not end it. At its end no process of it may be left."""
    running = Stack(tmp_path_factory.mktemp("data"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def found(stack: Stack, model: Path) -> Job:
    """A search that succeeded."""
    return stack.succeeded(stack.client.submit(quick(model)))


@pytest.fixture(scope="session")
def circuit_id(found: Job) -> str:
    return found.circuit_ids[0]


@pytest.fixture(scope="session")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Circuit:
    """What the slow search finds when nobody interrupts it: in this process, in large batches."""
    spec = parse_job(slow(model, batch_tokens=512))
    loaded = ModelCache(tmp_path_factory.mktemp("models")).load(reference_of(spec.model))
    [result] = run_on(loaded, spec, Quiet())
    assert result.circuit is not None
    return result.circuit
