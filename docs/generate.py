"""Write docs/reference from the code, or with --check say where it has drifted. `make docs`, `make check`.

No page states a fact of its own: commands come from the command line's own help, fields from the specs' JSON schemas,
errors from their tree, figures from the file that a benchmark wrote.
"""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import acdc.errors
import acdc.metrics
from acdc.api.openapi import openapi_text
from acdc.api.problems import STATUS_OF
from acdc.cli.failures import exit_code
from acdc.errors import AcdcError
from acdc.evaluation.truth import siit
from acdc.evaluation.truth.high_level import HIGH_LEVEL
from acdc.settings import PREFIX, Settings
from acdc.spec import KINDS, MAP_SPECS, METHOD_SPECS
from acdc.tasks import TASKS

REFERENCE = Path(__file__).parent / "reference"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
WRITTEN = "*Written by `make docs` from the code; change it there.*"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def coded(values: Sequence[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", WRITTEN, *parts]) + "\n"


def doc(thing: object) -> str:
    return inspect.getdoc(thing) or ""


# -- schemas -----------------------------------------------------------------------------------------------------------


def type_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: integer, one of, list of, or a link to the section of a nested object."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            kinds = dict.fromkeys(map(type_of, schema[union]))
            lists = [kind for kind in kinds if kind.removeprefix("list of ") in kinds.keys() - {kind}]
            return " or ".join("a list of these" if kind in lists else kind for kind in kinds)
    if "enum" in schema:
        return coded(schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(map(type_of, items)))
    return str(schema.get("type", "anything"))


def range_of(schema: Mapping[str, Any]) -> str:
    signs = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "minLength": "{} characters or more",
        "maxLength": "{} characters at most",
        "minItems": "{} or more",
        "maxItems": "{} at most",
        "maxProperties": "{} at most",
    }
    branches = [schema, *(schema.get("anyOf") or [])]
    return ", ".join(sign.format(branch[key]) for branch in branches for key, sign in signs.items() if key in branch)


def default_of(name: str, schema: Mapping[str, Any], required: Sequence[str]) -> str:
    if name in required:
        return "**required**"
    if "default" not in schema:
        return "all defaults"
    default = schema["default"]
    if isinstance(default, list) and default and all(isinstance(one, dict) and "name" in one for one in default):
        return coded([one["name"] for one in default])
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def fields(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        [f"`{name}`", type_of(field), range_of(field), default_of(name, field, required), field.get("description", "")]
        for name, field in schema.get("properties", {}).items()
    ]
    return table(["field", "type", "range", "default", "what it is"], rows)


def sections(models: Mapping[str, type[BaseModel]], more: str = "") -> Iterator[str]:
    """One section for each model, then one for each object that any of them holds, once. A model that another holds has
    its section already. more: a line of each model's section, {title} being its title."""
    titles = {model.__name__: title for title, model in models.items()}
    nested: dict[str, Any] = {}
    for title, model in models.items():
        schema = model.model_json_schema()
        nested |= schema.get("$defs", {})
        about = "\n\n".join(filter(None, (doc(model), more.format(title=title))))
        yield f"## {title}\n\n{about}\n\n{linked(fields(schema), titles)}"
    for name, schema in nested.items():
        if name not in titles:
            yield f"## {name}\n\n{schema.get('description', '')}\n\n{fields(schema)}"


def linked(text: str, titles: Mapping[str, str]) -> str:
    """Links to objects as links to the sections that describe them under another title."""
    for name, title in titles.items():
        text = text.replace(f"[{name}](#{name.lower()})", f"[{title}](#{title})")
    return text


# -- pages -------------------------------------------------------------------------------------------------------------


def spec_page() -> str:
    intro = (
        "A spec is YAML or JSON. `kind` says which of the following it is (`discover` by default). `task`, `method`, "
        "`map` and `ablation` may be one word, their name: the smallest spec is `task: ioi`. Unknown fields are "
        "refused, and all faults are told at once."
    )
    return page("Job specs", intro, *sections({f"kind: {kind}": model for kind, model in KINDS.items()}))


def methods_page() -> str:
    intro = (
        "A method gives scores to edges. Signs, costs and differences: [methods](../concepts/methods.md). The "
        "section's title is what `method` or `method.name` says."
    )
    tasks = table(
        ["task", "what it asks", "corruptions, the default first", "position roles", "example"],
        [[f"`{t.name}`", t.summary, coded(t.corruptions), coded(t.roles), f"`{t.example}`"] for t in TASKS.values()],
    )
    maps = (
        "What `map` or `map.name` of a `patch` job says, like `map: activations`: "
        "[patching maps](../concepts/patching.md). "
        f"They are {', '.join(f'[{name}](#map-{name})' for name in MAP_SPECS)}."
    )
    described = sections({f"map: {name}": spec for name, spec in MAP_SPECS.items()})
    return page(
        "Methods, maps, tasks and metrics",
        intro,
        *sections(METHOD_SPECS, "[Idea, formula, cost, when to use, what it fails on](../methods/{title}.md)"),
        f"## Patching maps\n\n{maps}",
        *described,
        f"## Tasks\n\n{tasks}",
        f"## Metrics\n\n{doc(acdc.metrics)}",
    )


def error_classes(root: type[AcdcError]) -> Iterator[type[AcdcError]]:
    """The tree of acdc.errors, parents first."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == acdc.errors.__name__:
            yield from error_classes(child)


def errors_page() -> str:
    rows = [
        [
            f"`{error.code}`",
            error.__name__,
            str(STATUS_OF[error.code].value),
            str(exit_code(error(""))),
            f"`{error.job_code}`",
            "yes" if error.is_retryable else "",
        ]
        for error in error_classes(AcdcError)
    ]
    head = ["code", "class", "HTTP", "exit code of `acdc`", "code of a job that fails with it", "try again?"]
    codes = doc(sys.modules["acdc.cli.failures"])
    return page(
        "Errors",
        "HTTP bodies are problem documents (RFC 9457) with `code` and all `errors`. Decide by the code.",
        table(head, rows),
        f"## The tree\n\n```text\n{doc(acdc.errors)}\n```",
        f"## Exit codes\n\n```text\n{codes}\n```",
    )


def settings_page() -> str:
    schema = Settings.model_json_schema()
    rows = [
        [f"`{PREFIX}{name.upper()}`", type_of(field), range_of(field), settings_default(field), field["description"]]
        for name, field in schema["properties"].items()
    ]
    return page(
        "Settings",
        "What the environment decides. An empty variable counts as none.",
        table(["variable", "type", "range", "default", "what it is"], rows),
    )


def settings_default(field: Mapping[str, Any]) -> str:
    """Places of this machine (default factories) and what follows from other fields have no default to print."""
    default = field.get("default")
    return "" if default in (None, "") else f"`{default}`"


def cli_page() -> str:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "cli.md"
        command = [
            sys.executable,
            "-m",
            "typer",
            "acdc.cli.app",
            "utils",
            "docs",
            "--name",
            "acdc",
            "--output",
            str(path),
        ]
        subprocess.run(command, check=True, capture_output=True)
        title, _, body = path.read_text(encoding="utf-8").partition("\n")
    return page(title.removeprefix("# "), body.strip())


def known_circuits_page() -> str:
    file = RESULTS / "truth-cpu-2-cores.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    lines = stored["environment"]["table"]
    intro = (
        "What `make bench-truth` printed: how near each method's ranking of edges comes to the circuits of "
        "[models whose circuit is known](../concepts/known-circuits.md). In brackets after a method: what it searches "
        "by. A cell is the median over models, ablations and seeds, with the 95 % interval of that median when models "
        "are drawn again (bootstrap; none where a family has fewer than five); *mean* and *lowest* are the average "
        "precision over all runs, and of the worst. Every model by itself: "
        f"[{file.name}](../../benchmarks/results/{file.name})."
    )
    head = ["method", "runs", "average precision", "mean", "lowest", "AUROC", "F1", "MIB"]
    families = [
        f"## {family}: {lines_of[0]['cases']} models\n\n{table(head, [known_circuits_row(line) for line in lines_of])}"
        for family in dict.fromkeys(line["family"] for line in lines)
        if (lines_of := [line for line in lines if line["family"] == family])
    ]
    figures = [
        [f"`{f['name']}`", f"{f['value']:.3f}", "" if f["target"] is None else f"at least {f['target']}", f["how"]]
        for f in stored["figures"]
    ]
    return page(
        "Methods on known circuits",
        intro,
        table(["figure", "value", "target", "of what"], figures),
        *families,
        f"## Trainings\n\n{doc(siit.Trained)}\n\n{trainings()}",
    )


def known_circuits_row(line: Mapping[str, Any]) -> list[str]:
    def spread(figure: str) -> str:
        of = line[figure]
        return f"{of['median']:.3f}" + ("" if of["low"] is None else f" [{of['low']:.2f}, {of['high']:.2f}]")

    first, *rest = (spread(figure) for figure in ("average_precision", "auroc", "f1", "mib_auroc"))
    method, objective = line["method"].removesuffix(")").split(" (")
    mean_and_lowest = (f"{line[name]:.3f}" for name in ("mean", "lowest"))
    return [f"`{method}` ({objective})", str(line["runs"]), first, *mean_and_lowest, *rest]


def trainings() -> str:
    """What every training of a model that is to hold a program came to."""
    rows = []
    for name, model in siit.trained().items():
        judged = (model.accuracy, model.iia, model.strict_iia, model.circuit_accuracy)
        counts = "yes" if model.is_accepted else "no"
        rows.append(
            [name, HIGH_LEVEL[name].about, str(model.seed), str(model.steps), *(f"{x:.4f}" for x in judged), counts]
        )
    head = ["program", "what it says", "seed", "steps", "accuracy", "IIA", "strict IIA", "circuit alone", "counts"]
    return table(head, rows)


def scoreboard_page() -> str:
    file = RESULTS / "methods-cpu-2-cores.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    known = stored["environment"]
    intro = (
        "What `make bench-methods` printed: every method makes one ranking of the edges of a model on "
        f"{known['prompts']} prompts of a task (fewer where a column says so), and the circuits cut from it are judged "
        f"on {known['held_out']} held-out prompts of other templates and about others (names, nouns, countries), the "
        "same for all in a cell. CMD (the area between f and 1, smaller is "
        "better; *guarded*: |1 - f| counts as at least 1 where the circuit predicts no better than the empty one) and "
        "KL (the area under the KL share) by |score|, CPR by signed score; k\\*: connected edges of the smallest size "
        "with f within 0.2 of 1 and at most half of the empty one's KL, held out and on the searched prompts; KL at "
        "1 %: of the edges, as a share of the "
        "empty circuit's; Jaccard: stability at 1 %; exact ρ: rank correlation of |score| with `exact` where that was "
        "run; seconds of all cores, for the search. Where a figure speaks of the best method of a cell, it is the best "
        "on these held-out prompts, so it is flattered by the choice among as many as there are rows. "
        "[What these are](../concepts/faithfulness.md). What decides the rows: "
        f"[{file.name}](../../benchmarks/results/{file.name})."
    )
    figures = [
        [f"`{f['name']}`", f"{f['value']:.3f}", "" if f["target"] is None else f"at most {f['target']}", f["how"]]
        for f in stored["figures"]
    ]
    columns = ["method", "prompts", "CMD guarded", "CMD", "CMD log", "CPR", "CPR log", "KL", "k\\*", "KL at 1 %"]
    head = [*columns, "Jaccard", "exact ρ", "CPU s", "GB"]
    cells = [
        f"## {name}\n\n{table(head, [scoreboard_row(method, row) for method, row in rows.items()])}"
        for name, rows in known["cells"].items()
    ]
    return page("Methods on real models", intro, table(["figure", "value", "target", "of what"], figures), *cells)


def scoreboard_row(method: str, row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return [method, "", "not run", *[""] * 11]

    def said(name: str) -> str:
        value = row[name]
        return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"

    areas = (said(name) for name in ("cmd_guarded", "cmd", "cmd_log", "cpr", "cpr_log", "kl_area"))
    rest = (said(name) for name in ("k_star", "kl_share_small", "jaccard", "exact_rho"))
    return [method, said("n_prompts"), *areas, *rest, f"{row['seconds']:,.0f}", f"{row['peak_gb']:.1f}"]


PAGES = {
    "cli.md": cli_page,
    "spec.md": spec_page,
    "methods.md": methods_page,
    "errors.md": errors_page,
    "settings.md": settings_page,
    "known-circuits.md": known_circuits_page,
    "scoreboard.md": scoreboard_page,
    "openapi.json": openapi_text,
}


def drifted(directory: Path) -> list[str]:
    """Names of pages in `directory` that the code would write otherwise."""
    return [
        name
        for name, write in PAGES.items()
        if not (path := directory / name).exists() or path.read_text(encoding="utf-8") != write()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page has drifted")
    parser.add_argument("--directory", type=Path, default=REFERENCE)
    given = parser.parse_args()
    if given.check:
        names = drifted(given.directory)
        sys.exit(f"out of date: {', '.join(names)}; run `make docs`" if names else 0)
    given.directory.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        (given.directory / name).write_text(write(), encoding="utf-8")


if __name__ == "__main__":
    main()
