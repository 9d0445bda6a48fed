"""Promises that the repository makes about itself as a whole."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]


def name_of(requirement: str) -> str:
    return re.split(r"[\s\[=<>!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def tracked(*patterns: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: there is no list of tracked files")
    return [path for line in done.stdout.splitlines() if (path := ROOT / line).exists()]


def test_every_dependency_is_pinned_to_one_version() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    required = {name_of(r) for r in [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["notebook"]]}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in PINS), "a pin names a version, no place and no build"
    assert required <= {name_of(pin) for pin in PINS}


def test_every_target_of_the_makefile_says_what_it_is_for() -> None:
    promised = {"setup", "demo", "test", "test-long", "check", "docs", "serve", "bench-engine", "pins", "clean"}
    described = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())  # type: ignore[index]
    assert promised <= described
    assert described == phony - {"help"}


def test_ci_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_committed_document_names_a_registry_or_a_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked("*.md", "*.toml", "*.txt", "Makefile", ".ci/run")
        for match in re.finditer(
            r"/home/\w+|/root/|--(extra-)?index-url|--find-links", path.read_text(encoding="utf-8")
        )
    ]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for page in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_only_settings_reads_the_environment() -> None:
    readers = [
        str(path.relative_to(ROOT))
        for path in tracked("acdc/*.py", "workers/*.py", "migrations/*.py")
        if re.search(r"os\.(environ|getenv)", path.read_text(encoding="utf-8"))
    ]
    assert set(readers) <= {"acdc/settings.py"}
