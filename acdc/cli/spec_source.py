"""From what stands on the command line to a request for a job.

SPEC is a YAML or JSON file, `-` for stdin, a file of custom pairs (.jsonl), or the bare name of a task. A known task's
name is the task even where a file is called so: write ./ioi for the file. Options are laid over it.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from acdc.circuit import Circuit
from acdc.cli.console import read_file
from acdc.errors import Fault, SpecError
from acdc.suggestions import did_you_mean

Source = Annotated[
    str, typer.Argument(metavar="SPEC", help="YAML or JSON file, - for stdin, pairs.jsonl, or a task's name like ioi")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="lay one field over SPEC, like method.steps=5")
]
Model = Annotated[str | None, typer.Option("--model", help="short name, or hub:… path:… gguf:… pypi:…")]
Method = Annotated[str | None, typer.Option("--method", help="`acdc methods` lists them")]
Map = Annotated[
    str | None,
    typer.Option("--map", help="a patching map instead of a search: activations, paths, causes or knockout"),
]
CircuitFile = Annotated[
    Path | None, typer.Option("--source", help="the circuit's file, for kind evaluate, challenge or try")
]
Name = Annotated[str | None, typer.Option("--name", help="what you call it")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="to find it again; may be repeated")]


def read_request(
    source: str,
    *,
    sets: Sequence[str] | None = None,
    model: str | None = None,
    method: str | None = None,
    map_name: str | None = None,
    name: str | None = None,
    tags: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What is asked for and no more, to be checked by whoever knows the circuit that it may be about.

    Raises SpecError for what cannot be read.
    """
    data = _read_source(source)
    flags = {"model": model, "method": method, "name": name, "tags": list(tags) if tags else None}
    data |= {key: value for key, value in flags.items() if value is not None}
    if map_name is not None:
        data |= {"kind": "patch", "map": map_name}
    return overlay(data, sets or ())


def with_source(request: dict[str, Any], source: Path) -> dict[str, Any]:
    """A request about the circuit in a file. As the service does it: what an evaluation leaves out is as the circuit's
    own job had it."""
    from acdc.spec import with_defaults_of

    digest = hashlib.sha256(read_file(source)).hexdigest()[:12]  # files of two circuits are often called the same
    named = {"circuit": f"{source.name} (sha256 {digest})", **request}
    if named.get("kind") != "evaluate":
        return named
    return with_defaults_of(Circuit.load(source).provenance.run.spec, named)


def overlay(data: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """`data` with every KEY=VALUE laid over it; a value is read as YAML. Raises SpecError with every fault."""
    import yaml

    changed, faults = dict(data), []
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            faults.append(Fault(f"--set {text}", "write KEY=VALUE, like method.steps=5"))
            continue
        try:
            _put(changed, key.split("."), _read_yaml(value))
        except (yaml.YAMLError, SpecError) as error:
            reason = error.message if isinstance(error, SpecError) else "the value is no YAML; quote it"
            faults.append(Fault(f"--set {text}", reason))
    if faults:
        raise SpecError(f"{len(faults)} of the --set options cannot be used", faults)
    return changed


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    from acdc.spec import written_out

    *parents, last = path
    for depth, key in enumerate(parents):
        inner = written_out(key, data.get(key)) if depth == 0 else data.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            raise SpecError(f"{'.'.join(parents[: depth + 1])} is {inner!r} and has no fields")
        data[key] = dict(inner or {})  # a copy: what was read is never changed
        data = data[key]
    data[last] = value


def _read_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, ValueError, RecursionError."""
    import yaml

    return yaml.load(text, _loader())


@functools.cache
def _loader() -> Any:
    """YAML as it is since 1.2, and JSON: 1e-3 is a number, which the reader that we use takes for text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def _read_source(source: str) -> dict[str, Any]:
    from acdc.tasks import TASKS

    if source == "-":
        return _parse(sys.stdin.buffer.read(), "stdin")
    if source in TASKS:
        return {"task": source}
    path = Path(source)
    if path.is_dir():
        raise SpecError(f"{source} is a directory; name the YAML or JSON file in it")
    if not path.exists():
        known = sorted(TASKS)
        hint = did_you_mean(source, known)
        raise SpecError(f"{source!r} is neither a file nor a task; {hint}known tasks: {', '.join(known)}")
    if path.suffix == ".jsonl":
        return {"task": {"name": "custom", "pairs": pairs_in(path)}}
    return _parse(read_file(path), source)


def _parse(data: bytes, where: str) -> dict[str, Any]:
    import yaml

    try:
        content = _read_yaml(data.decode("utf-8-sig"))  # JSON is YAML
    except UnicodeDecodeError:
        raise SpecError(f"{where} is not text in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{where} is neither YAML nor JSON: {reason}") from None
    if content is None:
        raise SpecError(f"{where} is empty; the smallest spec is `task: ioi`")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SpecError(f"{where} holds no mapping; a spec looks like `task: ioi`")
    return content


def pairs_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of custom pairs. Raises TaskError."""
    from dataclasses import asdict

    from acdc.tasks.pair_files import read_pairs

    return [asdict(row) for row in read_pairs(path)]
