"""A process of its own for tests: load DIRECTORY's GGUF through the cache, say each phase, and the fingerprint."""

from __future__ import annotations

import sys
from pathlib import Path

from tiny_files import Recorder, reference

from acdc.models.cache import ModelCache


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    cache, gguf = map(Path, sys.argv[1:])
    loaded = ModelCache(cache).load(reference("gguf", gguf), progress=Recorder(say))
    say(f"fingerprint {loaded.card.fingerprint}")
