"""Which specs this server takes: its allow-lists and limits, checked before a row exists."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from acdc.errors import Fault, Forbidden, SpecError
from acdc.models.catalogue import CATALOGUE
from acdc.settings import PREFIX, Settings
from acdc.spec import JobSpec, ModelRef


def admit(spec: JobSpec, settings: Settings) -> None:
    """Raises Forbidden for a model that the allow-lists leave out, SpecError for more prompts than the limit."""
    reasons = _refused_model(ModelRef.parse(spec.model), settings)
    if reasons:
        raise Forbidden("this server does not run that model", [Fault("model", reason) for reason in reasons])
    asked = spec.task.prompts + spec.task.held_out
    given = len(spec.task.pairs or ())
    if max(asked if spec.task.pairs is None else 0, given) > settings.max_prompts:
        where, count = ("task.prompts", asked) if spec.task.pairs is None else ("task.pairs", given)
        message = f"{count} prompts, searched and held out together; this server's limit is {settings.max_prompts}"
        raise SpecError("the job is larger than this server allows", [Fault(where, message)])


def _refused_model(ref: ModelRef, settings: Settings) -> list[str]:
    reasons = []
    if settings.allowed_models is not None:
        names = {str(ref)} | ({CATALOGUE[ref.name].reference} if ref.kind == "catalogue" else set())
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in settings.allowed_models):
            reasons.append(f"{ref} is not on the list; allowed: {', '.join(settings.allowed_models) or 'none'}")
    if settings.allowed_dirs is not None and ref.kind in ("path", "gguf"):
        place = Path(ref.name).expanduser().resolve()  # symbolic links and .. lead nowhere else
        if not any(place.is_relative_to(directory.expanduser().resolve()) for directory in settings.allowed_dirs):
            reasons.append(f"{ref.name} lies outside the directories that {PREFIX}ALLOWED_DIRS names")
    return reasons
