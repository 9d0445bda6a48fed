"""docs/generate.py: what it writes, and that its --check can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "cli.md",
    "spec.md",
    "methods.md",
    "errors.md",
    "settings.md",
    "known-circuits.md",
    "scoreboard.md",
    "openapi.json",
)


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/generate.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    done = generate("--directory", str(directory))
    assert done.returncode == 0, done.stderr
    return directory


def test_committed_reference_is_what_the_code_says() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stderr


def test_check_names_the_page_that_has_drifted(written: Path, tmp_path: Path) -> None:
    for name in PAGES:
        (tmp_path / name).write_text((written / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "errors.md").write_text("# Errors\n", encoding="utf-8")
    done = generate("--check", "--directory", str(tmp_path))
    assert done.returncode == 1
    assert "errors.md" in done.stderr
    assert "spec.md" not in done.stderr


def test_reference_holds_every_command_method_and_error(written: Path) -> None:
    from acdc.errors import AcdcError
    from acdc.spec import METHOD_SPECS

    texts = {name: (written / name).read_text(encoding="utf-8") for name in PAGES}
    assert all(f"## `acdc {command}`" in texts["cli.md"] for command in ("run", "submit", "serve", "demo", "try"))
    assert all(f"## {method}\n" in texts["methods.md"] for method in METHOD_SPECS)
    assert all(
        f"`{error.code}`" in texts["errors.md"] for error in AcdcError.__subclasses__() if "acdc.errors" in str(error)
    )


def test_reference_names_no_place_of_this_machine(written: Path) -> None:
    for name in PAGES:
        text = (written / name).read_text(encoding="utf-8")
        assert str(Path.home()) not in text
        assert str(ROOT) not in text
