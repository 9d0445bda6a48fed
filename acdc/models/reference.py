"""A model reference as the engine takes it: plain, parsed and checked by whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acdc.errors import UnknownModel


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

    @property
    def place(self) -> Path:
        """Where a `path:` or `gguf:` reference leads: the home directory filled in, no link and no `..` left.

        Raises UnknownModel for what no file system can hold.
        """
        assert self.kind in ("path", "gguf")
        try:
            if "\0" in self.name:
                raise ValueError("a path has no U+0000 in it")
            return Path(self.name).expanduser().resolve()
        except (RuntimeError, OSError, ValueError) as error:  # no such user, a circle of links, a name too long
            raise UnknownModel(f"{self.text!r} leads nowhere: {error}") from None

    def found_place(self) -> Path:
        """The same, where there is a model. Raises UnknownModel where there is none."""
        place = self.place
        if self.kind == "gguf" and not place.is_file():
            raise UnknownModel(f"{self.text}: there is no file {place}")
        if self.kind == "path" and not (place / "config.json").is_file():
            raise UnknownModel(f"{self.text}: {place} is no model directory (it has no config.json)")
        return place
