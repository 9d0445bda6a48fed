"""A model reference as the engine takes it: plain, parsed and checked by whoever made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reference:
    """text: as the user wrote it. kind: catalogue, hub, path, gguf or pypi.

    name: short name, `org/name`, directory, file or package. revision: branch, tag, commit or package version.
    member: the file inside the package.
    """

    text: str
    kind: str
    name: str
    revision: str | None = None
    member: str | None = None
