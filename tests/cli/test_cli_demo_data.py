"""A demo starts from an empty directory, and never empties one under a running service."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from acdc.cli.data_dir import is_served, serving
from acdc.cli.demo import _again, _empty
from acdc.errors import SpecError


@contextmanager
def running_service(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`acdc serve` without workers, once it answers."""
    command = [sys.executable, "-m", "acdc.cli", "serve", "--port", "0", "--workers", "0", "--json"]
    with subprocess.Popen([*command, "--data-dir", str(data_dir)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the service did not start"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_demo_does_not_empty_the_data_of_a_running_service(tmp_path: Path, number: int) -> None:
    data_dir = _empty(tmp_path / "demo-data")
    (data_dir / "found").touch()
    with running_service(data_dir) as process:
        with pytest.raises(SpecError, match=r"a running service has its data in .*stop that `acdc serve`.*--out"):
            _empty(data_dir)
        assert (data_dir / "found").exists()
        assert (data_dir / "acdc.db").exists()
        process.send_signal(number)
        process.wait(30)
        _empty(data_dir)
    assert [path.name for path in data_dir.iterdir()] == [".acdc-demo"]


def test_directory_is_served_until_the_last_of_its_services_ends(tmp_path: Path) -> None:
    assert not is_served(tmp_path)
    with serving(tmp_path):
        with serving(tmp_path):
            assert is_served(tmp_path)
        assert is_served(tmp_path)
    assert not is_served(tmp_path)


def test_service_that_keeps_its_data_elsewhere_makes_no_directory(tmp_path: Path) -> None:
    with serving(tmp_path / "none"):
        assert not (tmp_path / "none").exists()


def test_demo_touches_nothing_that_no_demo_made(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SpecError, match="no demo put there"):
        _empty(tmp_path)
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("out", "command"),
    [("build", "acdc demo"), ("elsewhere", "acdc demo --out elsewhere"), ("a b", "acdc demo --out 'a b'")],
)
def test_way_to_start_a_demo_again_repeats_where_it_was_to_write(out: str, command: str) -> None:
    assert _again(Path(out)) == command
