"""What import-linter cannot see: which modules are really loaded, in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH_FREE = ["acdc", "acdc.api.app", "acdc.api.openapi", "acdc.cli.app", "acdc.client", "acdc.spec", "acdc.plan",
              "acdc.tasks", "acdc.store", "acdc.drawing", "acdc.circuit", "acdc.selection", "acdc.settings",
              "acdc.models.catalogue"]  # fmt: skip
ENGINE = ["acdc.models", "acdc.patching", "acdc.tasks", "acdc.discovery", "acdc.evaluation", "acdc.drawing",
          "acdc.metrics", "acdc.selection", "acdc.setting", "acdc.errors", "acdc.progress", "acdc.graph",
          "acdc.circuit"]  # fmt: skip
# What neither torch nor transformers needs. psutil and pandas are not in the list: transformers loads
# them where it finds them, and that no engine module imports them is for import-linter to see.
NOT_ON_A_GPU_BOX = [
    "pydantic", "pydantic_settings", "sqlalchemy", "alembic", "psycopg", "fastapi", "starlette", "uvicorn", "httpx_sse",
    "typer", "platformdirs", "gguf",
]  # fmt: skip

# Imports a package with everything below it, while the names in `blocked` cannot be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

blocked, packages = set(sys.argv[1].split(",")), sys.argv[2].split(",")
sys.meta_path.insert(0, Blocker())
for package in packages:
    module = importlib.import_module(package)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), package + "."):
        importlib.import_module(found.name)
print(",".join(name for name in sys.modules if "." not in name))
"""


def imported(packages: list[str], blocked: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(blocked), ",".join(packages)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_service_side_loads_neither_torch_nor_transformers(module: str) -> None:
    # One interpreter each: a module loaded by its neighbour would hide what this one loads.
    command = [
        sys.executable,
        "-c",
        f"import {module}, sys; print(sorted({{'torch', 'transformers'}} & {{*sys.modules}}))",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_every_engine_module_imports_where_only_torch_and_transformers_are_installed() -> None:
    done = imported(ENGINE, NOT_ON_A_GPU_BOX)
    assert done.returncode == 0, done.stderr
    assert {"torch", "acdc"} <= set(done.stdout.strip().split(","))


def test_the_blocker_of_these_tests_blocks() -> None:
    done = imported(["acdc.spec"], NOT_ON_A_GPU_BOX)
    assert done.returncode != 0
    assert "blocked: pydantic" in done.stderr


def test_the_command_line_prints_its_help_without_torch() -> None:
    code = "import sys; sys.argv = ['acdc', '--help']; from acdc.cli import main; import atexit; " \
           "atexit.register(lambda: print('torch' in sys.modules)); main()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("False")
