"""Run one job spec without a service: no database, no API, the engine in a child process. What `acdc run` starts.

    python -m workers.local SPEC.json --out DIR [--resume] [--source CIRCUIT.safetensors]

SPEC.json is a job spec as JSON, `-` reads it from stdin. --source is the circuit file that an evaluate or try job
speaks of. DIR is made if need be and afterwards holds

    spec.json                 the spec, every field written out
    KEY.circuit.safetensors   a circuit, per result that has one (characters of KEY that no file name can have are `_`)
    KEY.json                  that result's tables
    log.txt                   what the engine printed, tracebacks included
    checkpoint.safetensors    only while unfinished: --resume goes on from it; without --resume it is removed at once

stdout carries one JSON object a line, flushed, and nothing else. `event` says which:

    {"event": "started",    "out": "DIR", "spec": {...}}      always first, but for a spec with faults
    {"event": "resumed",    "step": 12}                       the checkpoint was good for this spec and engine
    {"event": "phase",      "name": "search", "total": 128}   total 0: unknown
    {"event": "step",       "done": 17, "note": "9.6.q"}      about five a second at most
    {"event": "log",        "text": "..."}
    {"event": "checkpoint", "step": 13}                       --resume would go on from here
    {"event": "result",     "key": "circuit", "circuit": "DIR/circuit.circuit.safetensors" | null, "data": "DIR/circuit.json"}
    {"event": "error",      "code": "invalid_task", "message": "...", "job_code": "invalid_task",
                            "faults": [{"where": "...", "message": "..."}]}
    {"event": "finished",   "state": "succeeded" | "failed" | "cancelled"}      always last

Exit status: 0 succeeded; 1 failed (an `error` came before); 2 the spec has faults or the command line is wrong, nothing
was started; 130 cancelled. SIGINT and SIGTERM cancel: the engine stops at its next step, or is killed after a grace;
a second signal kills it at once. A reader that goes away (closed stdout) cancels too. The checkpoint stays.
"""

from __future__ import annotations
