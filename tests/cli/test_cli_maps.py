"""Maps on the command line: the short way to ask for one, what people read, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from store_samples import patch_map
from typer.testing import CliRunner

from acdc.cli.app import app
from acdc.cli.failures import WRONG
from acdc.cli.local_run import _finish
from acdc.cli.map_summary import map_data, summarise_map
from acdc.cli.spec_source import read_request
from acdc.drawing import draw_map
from acdc.drawing.svg import signed
from acdc.patch_map import PatchMap
from acdc.spec import PatchSpec, parse_job


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def text_of(made: PatchMap) -> str:
    """All but the table."""
    return "\n".join(str(part) for part in summarise_map(made) if isinstance(part, str))


def test_map_on_the_command_line_makes_it_a_patch_job(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("task: successor\nmap: {name: causes, samples: 2}\n")
    for source, task in (("ioi", "ioi"), (str(file), "successor")):
        request = read_request(source, map_name="paths", sets=["map.between=free", "task.prompts=4"])
        spec = parse_job(request)
        assert isinstance(spec, PatchSpec)
        assert (spec.map.name, spec.task.name, spec.task.sizes) == ("paths", task, (4, 0))
        assert json.loads(spec.canonical_json)["map"]["between"] == "free"


@pytest.mark.parametrize("command", ["run", "submit", "plan"])
def test_unknown_map_is_answered_with_what_was_meant(command: str) -> None:
    result = invoke(command, "ioi", "--map", "causs")
    assert result.exit_code == WRONG
    assert "did you mean causes?" in result.stderr


def test_search_and_map_do_not_go_together() -> None:
    result = invoke("plan", "ioi", "--map", "activations", "--method", "eap")
    assert result.exit_code == WRONG
    assert "there is no field 'method' here" in result.stderr


def test_plan_of_a_map_counts_its_cells() -> None:
    data = json.loads(invoke("plan", "ioi", "--map", "activations", "--set", "task.prompts=8", "--json").stdout)
    phases = {phase["name"]: phase for phase in data["phases"]}
    assert "8 prompts x (2 forward + 1,080 cells" in phases["search"]["how"]  # 30 layers, 9 heads, 4 roles
    assert phases["evaluate"]["seconds"] == 0


def test_one_export_is_one_file() -> None:
    result = invoke("maps", "export", "map_1", "--svg", "--csv")
    assert result.exit_code == WRONG
    assert "--svg or --csv" in result.stderr


def test_summary_names_what_was_changed_and_the_strongest_cells_with_intervals() -> None:
    made = patch_map()
    text = text_of(made)
    for words in (
        "map: ioi on toy, activation patching",
        "state mlp, places role, direction denoising; one thing at a time in the corrupt run",
        f"logit_diff {made.cells.clean.mean():.3f} clean, {made.cells.corrupt.mean():.3f} corrupt, over 8 prompts",
        f"total      {made.total('logit_diff').effect:.3f}, 95 % interval 3.",  # type: ignore[union-attr]
        "3 (2 layer x 2 place); 2 of them have a 95 % interval without 0",
    ):
        assert words in text
    assert "not normalised" not in text


def test_summary_of_a_map_without_corrupt_runs_compares_with_nothing() -> None:
    cells = patch_map().cells
    alone = PatchMap.of(replace(cells, base="clean", corrupt=cells.clean.copy(), has_other_run=False), seed=0)
    text = text_of(alone)
    assert f"logit_diff {cells.clean.mean():.3f} clean, over 8 prompts" in text
    assert "total" not in text
    assert "not normalised: the prompts have no corrupt run to compare with" in text
    assert map_data(alone)["total"] == {"logit_diff": None}


def test_summary_of_too_few_prompts_counts_no_clear_cells_and_says_why() -> None:
    cells = patch_map().cells
    few = {name: getattr(cells, name)[..., :4].copy() for name in ("per_example", "clean", "corrupt")}
    made = PatchMap.of(replace(cells, **few, groups=cells.groups[:4]), seed=0)
    assert "3 (2 layer x 2 place); intervals over fewer than 6 prompts tell no effect from chance" in text_of(made)
    assert "without 0" not in text_of(made)
    assert map_data(made)["n_clear"] == 0
    assert map_data(made)["too_few"] == made.too_few


def test_summary_of_one_prompt_has_no_interval() -> None:
    cells = patch_map().cells
    one = {name: getattr(cells, name)[..., :1].copy() for name in ("per_example", "clean", "corrupt")}
    made = PatchMap.of(replace(cells, **one, groups=cells.groups[:1]), seed=0)
    assert "95 % interval unknown of one" in text_of(made)
    picture = draw_map(made)
    assert not re.search(r"[+−]\d\S* \[", picture)  # cells, caption and the strongest alike
    assert f"total effect {signed(made.total('logit_diff').effect)}, over 1 prompt" in picture  # type: ignore[union-attr]


def test_strongest_cells_are_a_table_with_the_largest_first() -> None:
    made = patch_map()
    *_, table = summarise_map(made)
    console = Console(width=120)
    with console.capture() as said:
        console.print(table)
    lines = said.get().splitlines()
    assert lines[1].split() == ["layer", "place", "effect", "95", "%", "interval", "normalised"]
    assert lines[2].split()[:3] == ["1", "S2", "3.000"]
    assert lines[4].split()[-1] == "0.000"


def test_withheld_normalising_is_said_with_its_reason() -> None:
    made = patch_map()
    cells = replace(made.cells, clean=made.cells.corrupt.copy())
    assert "not normalised: clean and corrupt run differ by 0" in text_of(PatchMap.of(cells, seed=0))


def test_finished_map_is_drawn_and_written_as_a_table(tmp_path: Path) -> None:
    made, file = patch_map(), tmp_path / "map.map.safetensors"
    made.save(file)
    result = {"key": "map", "circuit": None, "map": str(file), "data": str(tmp_path / "map.json")}
    data, shown = _finish(result, tmp_path)
    assert (tmp_path / "map.svg").read_text().startswith("<svg")
    assert (tmp_path / "map.csv").read_text() == made.to_csv()
    assert data["pictures"] == [str(tmp_path / "map.svg")]
    assert data["strongest"] == made.strongest(10) == map_data(made)["strongest"]
    assert f"picture    {tmp_path / 'map.svg'}" in shown
