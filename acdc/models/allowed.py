"""The allow-list of a server: which references it takes, and from which directories. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from acdc.errors import Forbidden
from acdc.models.catalogue import CATALOGUE
from acdc.models.reference import Reference


@dataclass(frozen=True)
class AllowList:
    """patterns: shell patterns for references that name no file (`hub:EleutherAI/*`, a short name; one that fits a
    catalogue model's short name fits what that stands for, and the other way round). directories: where
    path: and gguf: references may lie, once symbolic links are followed. None is no limit; but where patterns alone are
    given, no file may be named at all."""

    patterns: Sequence[str] | None = None
    directories: Sequence[Path] | None = None

    def check(self, reference: Reference) -> None:
        """Raises Forbidden with what is allowed."""
        if reference.kind in ("path", "gguf"):
            self._check_file(reference)
        elif self.patterns is not None and not any(
            fnmatchcase(name, p) for name in _names(reference.text) for p in self.patterns
        ):
            raise Forbidden(f"model {reference.text!r} is not allowed here; allowed are: {_listed(self.patterns)}")

    def _check_file(self, reference: Reference) -> None:
        if self.directories is None and self.patterns is None:
            return
        path = reference.place
        directories = self.directories or ()
        if not any(path.is_relative_to(directory.expanduser().resolve()) for directory in directories):
            raise Forbidden(f"{reference.text!r} is not in an allowed directory; allowed are: {_listed(directories)}")


def _names(text: str) -> set[str]:
    """The text, and what else means the same model."""
    pairs = [{short, entry.reference} for short, entry in CATALOGUE.items()]
    return {text}.union(*(pair for pair in pairs if text in pair))


def _listed(allowed: Sequence[object]) -> str:
    return ", ".join(str(item) for item in allowed) or "none"
