"""The methods, by the name that specs use. A method is (problem, progress, **its parameters) -> list of Found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from acdc.discovery.acdc import search_acdc
from acdc.discovery.attribution import score_eap, score_eap_ig_activations, score_eap_ig_inputs
from acdc.discovery.exact import score_exact
from acdc.discovery.problem import Found


@dataclass(frozen=True)
class Method:
    """default_objective: None means the job's metric."""

    name: str
    search: Callable[..., list[Found]]
    default_objective: str | None = None


METHODS = {
    method.name: method
    for method in (
        Method("eap", score_eap),
        Method("eap-ig-inputs", score_eap_ig_inputs),
        Method("eap-ig-activations", score_eap_ig_activations),
        Method("exact", score_exact),
        Method("acdc", search_acdc, default_objective="kl_divergence"),
    )
}
