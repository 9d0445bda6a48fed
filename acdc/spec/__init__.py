"""What a user asks for: frozen, torch-free, with a canonical JSON form and its sha256.

Every field has the default that a newcomer would want, so the smallest spec is `{"task": "ioi"}`.
The engine takes plain arguments, not these models: this package is the only place where a parameter's range and
default are written, and `acdc.pipeline` the only one that hands them over.

    forms, contradictions    how values are written, and how choices that exclude each other are told
    references, tasks,       the parts of a job
    sizes, methods, maps,
    choices
    jobs                     the kinds of jobs, made of these
    reading, faults          from data to a job, and what is wrong with it in our words
"""

from __future__ import annotations

from acdc.spec.choices import Ablation, AblationName, Hypothesis, Selection
from acdc.spec.faults import faults_of
from acdc.spec.forms import MetricName, NonEmpty, spell_infinity, written_out
from acdc.spec.jobs import (
    KINDS,
    ChallengeSpec,
    DiscoverSpec,
    EvaluateSpec,
    JobSpec,
    MeasuredSpec,
    OnCircuit,
    PatchSpec,
    PromptsSpec,
    TrySpec,
    Varied,
)
from acdc.spec.maps import EVERY, MAP_SPECS, Activations, Causes, Knockout, NodeSet, NodeSets, Paths, RestoredSpec
from acdc.spec.methods import (
    BY_ROLE,
    FOUND_WITH,
    METHOD_SPECS,
    PER_EXAMPLE,
    Acdc,
    EdgePruning,
    Ensemble,
    InformationFlowRoutes,
    MethodSpec,
    NestedPruning,
    methods_in,
)
from acdc.spec.reading import parse_job, with_defaults_of
from acdc.spec.references import ModelRef, reference_of
from acdc.spec.tasks import MAP_PROMPTS, CustomPair, MapTaskSpec, TaskSpec

__all__ = [
    "BY_ROLE",
    "EVERY",
    "FOUND_WITH",
    "KINDS",
    "MAP_PROMPTS",
    "MAP_SPECS",
    "METHOD_SPECS",
    "PER_EXAMPLE",
    "Ablation",
    "AblationName",
    "Acdc",
    "Activations",
    "Causes",
    "ChallengeSpec",
    "CustomPair",
    "DiscoverSpec",
    "EdgePruning",
    "Ensemble",
    "EvaluateSpec",
    "Hypothesis",
    "InformationFlowRoutes",
    "JobSpec",
    "Knockout",
    "MapTaskSpec",
    "MeasuredSpec",
    "MethodSpec",
    "MetricName",
    "ModelRef",
    "NestedPruning",
    "NodeSet",
    "NodeSets",
    "NonEmpty",
    "OnCircuit",
    "PatchSpec",
    "Paths",
    "PromptsSpec",
    "RestoredSpec",
    "Selection",
    "TaskSpec",
    "TrySpec",
    "Varied",
    "faults_of",
    "methods_in",
    "parse_job",
    "reference_of",
    "spell_infinity",
    "with_defaults_of",
    "written_out",
]
