"""`acdc plan --measure`: the time of an exact search from a few of its receivers, measured in a process that loads the
model; this one never loads torch."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from acdc.cli.console import write_file
from acdc.cli.failures import JobFailed
from acdc.cli.live import LiveProgress
from acdc.cli.processes import json_lines, sigterm_as_interrupt, spawn, stop
from acdc.client import faults_of
from acdc.errors import SpecError
from acdc.plan import BISECTION, DOUBTED_TESTS, Phase, Plan
from acdc.spec import Acdc, DiscoverSpec, JobSpec

GRACE_S = 5.0


def with_measured(spec: JobSpec, plan: Plan, found: Mapping[str, Any]) -> Plan:
    """The plan with the search as the rehearsal found it."""
    assert isinstance(spec, DiscoverSpec) and isinstance(spec.method, Acdc)  # noqa: PT018
    searches = BISECTION if spec.method.edges is not None else 1
    times = found["ms_per_edge"]
    how = f"measured at {len(times)} receivers with {found['prompts']:,} prompts: about {found['edges']:,} tested edges"
    if times:
        how += f" at {min(times):.1f} to {max(times):.1f} ms"
    if len(spec.method.thresholds) > 1:
        how += f", over {len(spec.method.thresholds)} thresholds"
    if searches > 1:
        how += f", in each of about {searches} searches"
    if spec.method.stages:
        how += "; the first stage alone"
    search = Phase("search", found["seconds"] * searches, how)
    phases = tuple(search if phase.name == search.name else phase for phase in plan.phases)
    needed = f"of its budget the search needed {found['memory_bytes'] / 1e6:,.0f} MB or more at these receivers"
    memory = replace(plan.memory, how=f"{plan.memory.how}; {needed}")
    doubts = [what for what in plan.doubts if what != DOUBTED_TESTS]
    return replace(plan, phases=phases, memory=memory, doubts=(*doubts, *_doubts_of(spec.method)))


def _doubts_of(method: Acdc) -> list[str]:
    """What a rehearsal cannot know."""
    doubts = [
        "how many edges are tested: those are taken for kept whose attribution reaches the threshold, and it may be "
        "far from what cutting them costs"
    ]
    if method.stages:
        doubts.append("how many edges the first stage leaves open, which take longer")
    if method.edges is not None:
        doubts.append(f"how many searches it takes to find the threshold: {BISECTION} are reckoned with")
    return doubts


def rehearse(spec: JobSpec) -> dict[str, Any]:
    """What `workers.rehearsal` tells of a search. Raises SpecError, JobFailed."""
    if not isinstance(spec, DiscoverSpec) or not isinstance(spec.method, Acdc):
        raise SpecError("--measure is for searches with method acdc: the time of other jobs is known from their shape")
    with (
        sigterm_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="acdc-plan-") as scratch,
        LiveProgress() as progress,
    ):
        file = write_file(Path(scratch) / "spec.json", spec.canonical_json)
        process = spawn(["workers.rehearsal", str(file)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            for event in json_lines(process.stdout):
                match event["event"]:
                    case "phase":
                        progress.show(event["name"], 0, event["total"])
                    case "rehearsal":
                        return event
                    case "error":
                        raise JobFailed(f"{event['message']} ({event['code']})", faults_of(event["faults"]))
        finally:
            stop([process], GRACE_S)
    raise JobFailed("measuring ended without a word; `acdc run` with the same spec says why")
