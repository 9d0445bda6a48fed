"""The methods, by the name that specs use. A method is (problem, progress, **its parameters) -> list of Found."""

from __future__ import annotations

from collections.abc import Callable

from acdc.discovery.acdc import search_acdc
from acdc.discovery.eap import score_eap, score_eap_ig_activations, score_eap_ig_inputs
from acdc.discovery.eap_ig_qk import score_eap_ig_qk
from acdc.discovery.edge_pruning import search_edge_pruning
from acdc.discovery.ensemble import score_ensemble
from acdc.discovery.exact import score_exact
from acdc.discovery.gim import score_gim
from acdc.discovery.information_flow_routes import score_information_flow_routes
from acdc.discovery.mask_ig import score_mask_ig
from acdc.discovery.nested_pruning import search_nested_pruning
from acdc.discovery.node_ap import score_node_ap, score_node_ap_ig
from acdc.discovery.problem import Found
from acdc.discovery.relp import score_relp

METHODS: dict[str, Callable[..., list[Found]]] = {
    "eap": score_eap,
    "eap-ig-inputs": score_eap_ig_inputs,
    "eap-ig-activations": score_eap_ig_activations,
    "eap-ig-qk": score_eap_ig_qk,
    "mask-ig": score_mask_ig,
    "node-ap": score_node_ap,
    "node-ap-ig": score_node_ap_ig,
    "relp": score_relp,
    "gim": score_gim,
    "information-flow-routes": score_information_flow_routes,
    "edge-pruning": search_edge_pruning,
    "nested-pruning": search_nested_pruning,
    "ensemble": score_ensemble,
    "exact": score_exact,
    "acdc": search_acdc,
}
