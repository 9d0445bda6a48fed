"""The methods, by the name that specs use. A method is (problem, progress, **its parameters) -> list of Found."""

from __future__ import annotations

from collections.abc import Callable

from acdc.discovery.acdc import search_acdc
from acdc.discovery.eap import score_eap, score_eap_ig_activations, score_eap_ig_inputs
from acdc.discovery.exact import score_exact
from acdc.discovery.problem import Found

METHODS: dict[str, Callable[..., list[Found]]] = {
    "eap": score_eap,
    "eap-ig-inputs": score_eap_ig_inputs,
    "eap-ig-activations": score_eap_ig_activations,
    "exact": score_exact,
    "acdc": search_acdc,
}
