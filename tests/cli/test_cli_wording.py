"""What commands print for people, part by part."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console
from store_samples import circuit
from typer.testing import CliRunner

from acdc.cli.app import app
from acdc.cli.check import _rows
from acdc.cli.circuits import _remark_on_ablation
from acdc.cli.console import duration, moment, table
from acdc.cli.demo import CORRUPT, _activation, _ways_on
from acdc.cli.local_run import _called, _command
from acdc.cli.maps import Kind
from acdc.cli.measuring import with_measured
from acdc.cli.spec_source import with_source
from acdc.client import CircuitInfo
from acdc.patch_map import MapKind
from acdc.plan import BISECTION, DOUBTED_TESTS, Speed, estimate, facts_of
from acdc.spec import parse_job

CIRCUIT_ID = "cir_06gzsqm6xhd32t10pvajzm"
FOUND = CircuitInfo(
    id=CIRCUIT_ID,
    name=None,
    model="m",
    task="ioi",
    method="eap",
    n_edges=3,
    n_edges_total=9,
    f=None,
    kl_share=None,
    created_at=None,
    raw={"provenance": {"choices": {"ablation": "resample"}}},
)


def test_an_id_stays_in_one_piece_in_a_narrow_terminal() -> None:
    text = io.StringIO()
    Console(file=text, width=50).print(table(("circuit", "what"), [[CIRCUIT_ID, "words " * 20]]))
    assert CIRCUIT_ID in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (0.2, "0 s"), (119, "119 s"), (600, "10 min"), (58481.2, "16.2 h")]
)
def test_long_times_are_told_in_minutes_and_hours(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_times_of_day_are_told_to_the_minute() -> None:
    assert moment("2026-11-21T06:50:04.402000Z") == "2026-11-21 06:50"
    assert moment(None) is None


@pytest.mark.parametrize("words", _ways_on(CIRCUIT_ID, Path("build/demo data")), ids=lambda words: words[1])
def test_ways_on_from_the_demo_are_commands_that_exist(words: list[str]) -> None:
    result = CliRunner().invoke(app, [*words[1:], "--help"])
    assert result.exit_code == 0, result.output


def test_environment_is_activated_only_where_the_shell_does_not_know_acdc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / ".venv" / "bin" / "activate"
    script.parent.mkdir(parents=True)
    script.touch()
    (script.parent / "acdc").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("PATH", "")
    assert _activation() == [[".", ".venv/bin/activate"]]
    monkeypatch.setenv("PATH", str(script.parent))
    assert _activation() == []


def test_demo_tells_to_try_the_circuit_as_it_was_found() -> None:
    (words,) = (words for words in _ways_on(CIRCUIT_ID, Path("x")) if words[1] == "try")
    assert words[-2:] == ["--corrupt", CORRUPT]


def test_trying_another_ablation_than_the_search_had_is_remarked_on(capsys: pytest.CaptureFixture[str]) -> None:
    _remark_on_ablation(FOUND)
    assert "--corrupt" in capsys.readouterr().err
    _remark_on_ablation(replace(FOUND, raw={"provenance": {"choices": {"ablation": "zero"}}}))
    assert capsys.readouterr().err == ""


def test_a_run_that_goes_on_is_asked_for_with_all_its_options() -> None:
    said: dict[str, Sequence[object]] = {
        "--out": [Path("a b")],
        "--model": [None],
        "--method": ["eap"],
        "--set": ["task.seed=1", "seed=2"],
    }
    assert _command("ioi", said) == "acdc run ioi --out 'a b' --method eap --set task.seed=1 --set seed=2"


@pytest.mark.parametrize(
    ("method", "seconds", "words", "doubts"),
    [
        ({"thresholds": [0.1]}, 100.0, "at 7.0 to 9.0 ms", []),
        ({"thresholds": [0.1, 0.2]}, 100.0, "over 2 thresholds", []),
        ({"edges": 20}, 100.0 * BISECTION, f"in each of about {BISECTION} searches", ["how many searches"]),
        ({"stages": [8]}, 100.0, "the first stage alone", ["leaves open"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_measured_search_takes_the_place_of_the_reckoned_one(
    method: dict[str, Any], seconds: float, words: str, doubts: list[str]
) -> None:
    spec = parse_job({"method": {"name": "acdc", **method}})
    made = estimate(spec, facts_of("smollm2-135m-instruct-q4"), Speed(1e10, "a test"), doubts=["of the machine"])
    found = {"edges": 50, "prompts": 8, "seconds": 100.0, "ms_per_edge": [9.0, 7.0], "memory_bytes": 2_000_000}
    plan = with_measured(spec, made, found)
    search = next(phase for phase in plan.phases if phase.name == "search")
    assert search.seconds == seconds
    assert words in search.how
    assert "2 MB or more" in plan.memory.how
    assert plan.doubts[0] == made.doubts[0] == "of the machine"
    assert DOUBTED_TESTS in made.doubts
    assert DOUBTED_TESTS not in plan.doubts
    for doubt, part in zip(plan.doubts[1:], ["attribution", *doubts], strict=True):
        assert part in doubt


def test_two_circuits_of_one_file_name_are_two_jobs(tmp_path: Path) -> None:
    for name, threshold in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        one = circuit()
        run = replace(one.provenance.run, notes=(str(threshold),))
        replace(one, provenance=replace(one.provenance, run=run)).save(tmp_path / name / "circuit.circuit.safetensors")
    files = [tmp_path / name / "circuit.circuit.safetensors" for name in "ab"]
    named = [with_source({"kind": "try", "prompt": "x"}, file)["circuit"] for file in files]
    assert named[0].startswith("circuit.circuit.safetensors (sha256 ")
    assert named[0] != named[1]


def test_every_kind_of_map_can_be_asked_for() -> None:
    assert tuple(Kind) == get_args(MapKind)


def test_every_job_has_a_directory_of_its_own() -> None:
    one, two, mapped = (
        _called(parse_job(spec))
        for spec in ({"method": "eap"}, {"method": "eap", "seed": 1}, {"kind": "patch", "map": "paths"})
    )
    assert re.fullmatch("discover-ioi-eap-[0-9a-f]{8}", one)
    assert one != two
    assert re.fullmatch("patch-ioi-paths-[0-9a-f]{8}", mapped)


def row(group: str) -> dict[str, Any]:
    answer = {"text": " are", "is_right": True, "tokens": [1]}
    seen = {"clean": [{"text": "The"}], "corrupt": [{"text": "The"}], "differs": [], "answers": [answer]}
    about = {"row": 1, "group": group, "half": "search", "is_usable": True, "metric": None}
    return {**seen, **about, "reasons": [], "suggestions": []}


def test_a_check_says_when_the_groups_are_too_few_to_search() -> None:
    def said(*groups: str) -> list[str]:
        rows = [row(group) for group in groups]
        facts = {"metric": "logit_diff", "n_usable": len(rows), "is_enough": len(set(groups)) > 1}
        return list(_rows({"tokenizer_adds_bos": False, "rows": rows, **facts}))

    assert said("a", "b")[-1] == "2 of 2 rows can be used, of 2 groups"
    *_, counted, verdict = said("a", "a")
    assert counted == "2 of 2 rows can be used, of 1 group"
    assert verdict.startswith("too few")
    assert "  answer   ' are', 1 token" in said("a")
