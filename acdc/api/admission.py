"""Which jobs this server takes: what is asked for with what its circuit gives, within the allow-lists and limits.
Checked before a row exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acdc.api.services import Services, checked_id
from acdc.circuit import Provenance
from acdc.errors import Fault, Forbidden, SpecError, UnknownModel
from acdc.models.allowed import AllowList
from acdc.on_circuits import require_possible
from acdc.settings import Settings
from acdc.spec import EvaluateSpec, JobSpec, OnCircuit, PromptsSpec, TrySpec, parse_job, reference_of, with_defaults_of

_ABOUT_CIRCUITS = ("evaluate", "try", "challenge")


def admitted(services: Services, data: object) -> tuple[JobSpec, PromptsSpec]:
    """The job that `data` asks for, and the one whose model and prompts it works with: itself, or for one on a
    circuit the job that found it.

    Raises SpecError, NotFound for the circuit, TaskError or GraphMismatch for what cannot be had of it, UnknownModel or
    Forbidden for the model.
    """
    behind: Mapping[str, Any] = {}
    if isinstance(data, Mapping) and data.get("kind") in _ABOUT_CIRCUITS and isinstance(data.get("circuit"), str):
        detail = services.store.circuits.get(checked_id("circuit", data["circuit"]))
        behind = Provenance.from_dict(detail.provenance).job
        data = with_defaults_of(behind, data) if data["kind"] == "evaluate" else data
    spec = parse_job(data, is_request=True)
    measured = parse_job(behind) if isinstance(spec, OnCircuit) else spec
    if isinstance(measured, OnCircuit):  # in a file that was written by hand
        raise SpecError("the circuit names no search that found it, so there is no model and no task to try it with")
    if isinstance(spec, TrySpec | EvaluateSpec) and spec.circuit is not None:
        require_possible(spec, services.circuit(spec.circuit))
    _check_model(measured.model, services.settings)
    _check_prompts(measured, services.settings.max_prompts)
    return spec, measured


def _check_model(model: str, settings: Settings) -> None:
    """A worker checks it once more: its own lists may be shorter, and a link may lead elsewhere there."""
    try:
        AllowList(settings.allowed_models, settings.allowed_dirs).check(reference_of(model))
    except (Forbidden, UnknownModel) as error:
        raise type(error)("this server does not run that model", [Fault("model", error.message)]) from None


def _check_prompts(spec: PromptsSpec, limit: int) -> None:
    task = spec.task
    where, count = ("task.prompts", sum(task.sizes))
    if task.pairs is not None:
        where, count = "task.pairs", len(task.pairs)
    if count > limit:
        message = f"{count} prompts, searched and held out together; this server's limit is {limit}"
        raise SpecError("the job is larger than this server allows", [Fault(where, message)])
