"""The container of maps: means and intervals, tables, and a file that round-trips to the bit."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest

from acdc.circuit import Choices, ModelCard, Provenance, Run, TaskCard
from acdc.container import pack
from acdc.errors import MapFileError
from acdc.evaluation.bootstrap import mean_interval
from acdc.patch_map import Axis, Cells, PatchMap

PROVENANCE = Provenance(
    model=ModelCard("path:x", "X", "toy", "f" * 64, "0" * 64, 7),
    task=TaskCard("ioi", "abc", "1" * 64, 12, 0, 1, 0, ("a",), ()),
    choices=Choices("logit_diff", "logit_diff", "resample", "activation_patching", {"state": "head"}),
    run=Run("0.1", 1, "2", "5", "float64", "cpu", 2, 0, 1.5, 10, notes=("a note",)),
)


def cells(n: int = 12, base: str = "clean", seed: int = 0) -> Cells:
    rng = np.random.default_rng(seed)
    defined = np.ones((2, 3), dtype=bool)
    defined[1, 2] = False
    per_example = rng.normal(size=(2, 2, 3, n)) * defined[None, ..., None]
    return Cells(
        kind="activation_patching",
        axes=(Axis("metric", ("logit_diff", "kl")), Axis("layer", ("0", "1")), Axis("place", ("S", "IO", "end"))),
        per_example=per_example,
        defined=defined,
        clean=rng.normal(5, 1, size=(2, n)),
        corrupt=rng.normal(0, 1, size=(2, n)),
        base=base,
        groups=tuple(f"g{i // 2}" for i in range(n)),
        parameters={"state": "residual_before", "senders": [["a", "b"]]},
        facts={"std": 0.25},
    )


@pytest.mark.parametrize("base", ["clean", "corrupt"])
@pytest.mark.parametrize("n", [12, 40])
def test_effects_are_means_of_differences_with_the_shared_bootstrap_interval(base: str, n: int) -> None:
    measured = cells(n, base)
    found = PatchMap.of(measured, seed=3)
    start = measured.clean if base == "clean" else measured.corrupt
    for at in [(0, 0, 1), (1, 1, 0)]:
        difference = measured.per_example[at] - start[at[0]]
        interval = mean_interval(difference, measured.groups, 3)
        assert found.effect[at] == pytest.approx(difference.mean())
        assert (found.low[at], found.high[at]) == pytest.approx((interval.low, interval.high))
        assert (found.unit, found.n_units) == (interval.unit, interval.n_units)
    assert found.effect[0, 1, 2] == found.low[0, 1, 2] == found.high[0, 1, 2] == 0


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_normalised_one_is_all_the_way_to_the_other_run(base: str) -> None:
    measured = cells(base=base)
    ends = measured.other_metric, measured.base_metric
    changed = np.stack([measured.per_example[:, 0], np.stack([ends[0], ends[1], (ends[0] + ends[1]) / 2], 1)], 1)
    found = PatchMap.of(replace(measured, per_example=changed, defined=np.ones((2, 3), bool)), seed=0)
    share = found.normalised("logit_diff")
    assert share.effect is not None
    assert share.low is not None
    assert share.high is not None
    assert share.effect[1] == pytest.approx([1, 0, 0.5])
    assert (share.low <= share.effect).all()
    assert (share.effect <= share.high).all()
    assert share.denominator == pytest.approx((ends[0] - ends[1])[0].mean())


@pytest.mark.parametrize("base", ["clean", "corrupt"])
def test_total_and_what_remains_are_means_of_differences_with_intervals_of_their_own(base: str) -> None:
    measured = cells(base=base)
    found = PatchMap.of(measured, seed=3)
    start, end = measured.base_metric, measured.other_metric
    for i, metric in enumerate(measured.metrics):
        total, interval = found.total(metric), mean_interval(end[i] - start[i], measured.groups, 3)
        assert total is not None
        assert (total.effect, total.low, total.high) == ((end[i] - start[i]).mean(), interval.low, interval.high)
        for cell in ((0, 1), (1, 0)):
            left = end[i] - measured.per_example[(i, *cell)]
            interval = mean_interval(left, measured.groups, 3)
            ends = found.remaining_low[(i, *cell)], found.remaining_high[(i, *cell)]
            assert found.remaining[(i, *cell)] == pytest.approx(left.mean())
            assert ends == pytest.approx((interval.low, interval.high))
            assert found.effect[(i, *cell)] + found.remaining[(i, *cell)] == pytest.approx(total.effect)
    assert found.remaining[0, 1, 2] == found.remaining_low[0, 1, 2] == 0
    with pytest.raises(KeyError, match="no metric 'loss'"):
        found.total("loss")


def test_without_another_run_there_is_no_total_and_nothing_remains_or_is_normalised(tmp_path: Path) -> None:
    alone = replace(cells(), corrupt=cells().clean.copy(), has_other_run=False)
    PatchMap.of(alone, seed=0).save(tmp_path / "m")
    for found in (PatchMap.of(alone, seed=0), PatchMap.load(tmp_path / "m")):
        assert found.total("kl") is None
        assert found.normalised("kl").withheld == "the prompts have no corrupt run to compare with"
        assert not found.remaining.any()
        assert not found.remaining_high.any()
        lines = list(csv.DictReader(io.StringIO(found.to_csv())))
        empty = ("normalised", "normalised_low", "remaining", "remaining_low", "remaining_high")
        assert {line[name] for line in lines for name in empty} == {""}
        assert all(float(line["effect"]) for line in lines)


# -- how sure ----------------------------------------------------------------------------------------------------------


def strong(n: int) -> Cells:
    """Effects of 3 on n prompts, which differ little."""
    draw = np.random.default_rng(0)
    measured = cells(n)
    changed = measured.clean[:, None, None] + 3 + 0.1 * draw.normal(size=(2, 2, 3, n))
    return replace(measured, per_example=changed * measured.defined[None, ..., None])


@pytest.mark.parametrize("n", [1, 2, 5, 6, 12])
def test_of_fewer_than_six_prompts_no_cell_is_clear_and_it_is_said_why(n: int) -> None:
    found = PatchMap.of(strong(n), seed=0)
    assert found.clear.sum() == (0 if n < 6 else 2 * 5)
    assert (f"fewer than 6 prompts tell no effect from chance, and here are {n}" in found.too_few) == (n < 6)
    assert bool(found.too_few) == (n < 6)


def test_one_prompt_is_not_normalised_and_twelve_that_agree_are() -> None:
    assert "one prompt does not tell how sure" in PatchMap.of(strong(1), seed=0).normalised("kl").withheld
    assert PatchMap.of(strong(12), seed=0).normalised("kl").effect is not None


@pytest.mark.parametrize(("size", "n_clear"), [(1e-9, 0), (1e-4, 2 * 5)])
def test_rounding_of_the_metric_is_never_clear(size: float, n_clear: int) -> None:
    """Metrics are about 5: float32 tells no difference of theirs below 1e-6."""
    measured = strong(12)
    changed = (measured.clean[:, None, None] + size) * measured.defined[None, ..., None]
    assert PatchMap.of(replace(measured, per_example=changed), seed=0).clear.sum() == n_clear


def test_normalised_is_withheld_with_the_reason_where_the_runs_hardly_differ() -> None:
    measured = cells()
    alike = replace(measured, corrupt=measured.clean + np.array([[1e-9], [3.0]]))
    found = PatchMap.of(alike, seed=0)
    share = found.normalised("logit_diff")
    assert share.effect is share.low is share.high is None
    assert "too little to divide by" in share.withheld
    assert found.normalised("kl").effect is not None
    with pytest.raises(KeyError, match="no metric 'loss'"):
        found.normalised("loss")


def test_tables_hold_every_defined_cell_and_read_back_to_the_bit() -> None:
    found = PatchMap.of(replace(cells(), corrupt=cells().clean), seed=0)
    frame = found.to_dataframe()
    assert list(frame.columns[:4]) == ["metric", "layer", "place", "effect"]
    assert len(frame) == 2 * 5
    assert frame.normalised.isna().all()
    (row,) = frame[(frame.metric == "kl") & (frame.layer == "1") & (frame.place == "IO")].itertuples()
    assert row.effect == found.effect[1, 1, 1]
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [float(line["effect"]) for line in lines] == frame.effect.tolist()
    assert [float(line["remaining_high"]) for line in lines] == frame.remaining_high.tolist()
    assert row.remaining_low == found.remaining_low[1, 1, 1]
    assert {line["normalised"] for line in lines} == {""}
    read = pandas.read_csv(io.StringIO(PatchMap.of(cells(), seed=0).to_csv()))
    assert read.normalised.notna().all()


def test_map_prints_as_one_short_line_with_its_axes() -> None:
    line = repr(PatchMap.of(cells(base="corrupt"), seed=0, provenance=PROVENANCE))
    assert len(line) < 250
    assert "\n" not in line
    for part in ("ioi on path:x", "activation_patching: 2 layer x 3 place, 5 cells", "corrupt run", "logit_diff, kl"):
        assert part in line
    assert "PatchMap(Cells(" in repr(PatchMap.of(cells(), seed=0))


@pytest.mark.parametrize("provenance", [None, PROVENANCE])
def test_what_is_loaded_is_what_was_saved_to_the_bit(tmp_path: Path, provenance: Provenance | None) -> None:
    saved = PatchMap.of(cells(), seed=4, provenance=provenance)
    file = tmp_path / "map.safetensors"
    saved.save(file)
    loaded = PatchMap.load(file)
    assert loaded.to_bytes() == saved.to_bytes() == file.read_bytes()
    for name in ("effect", "low", "high", "remaining", "remaining_low", "remaining_high"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
    for name in ("per_example", "defined", "clean", "corrupt"):
        assert np.array_equal(getattr(loaded.cells, name), getattr(saved.cells, name))
    assert (loaded.axes, loaded.cells.groups, loaded.seed) == (saved.axes, saved.cells.groups, 4)
    assert (loaded.cells.parameters, loaded.cells.facts) == (saved.cells.parameters, {"std": 0.25})
    assert loaded.provenance == provenance
    with pytest.raises(ValueError, match="read-only"):
        loaded.effect[0, 0, 0] = 1


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    data = PatchMap.of(cells(), seed=0).to_bytes()
    arrays = {"per_example": np.zeros(3)}
    flipped = bytearray(data)
    flipped[-1] ^= 1
    for content, message in [
        (b"", "damaged or no safetensors"),
        (b"hello world, this is no map at all", "damaged or no safetensors"),
        (data[:-9], "damaged or no safetensors"),
        (bytes(flipped), "checksum"),
        (data.replace(b"acdc-patch-map/1", b"acdc-patch-map/9"), "checksum"),
        (pack({"format": "acdc-patch-map/1"}, arrays), "no map file of this program"),
    ]:
        with pytest.raises(MapFileError, match=message):
            PatchMap.from_bytes(content, "m")
    with pytest.raises(MapFileError, match="cannot be read"):
        PatchMap.load(tmp_path / "nothing")


def test_a_file_with_another_header_or_other_types_is_refused() -> None:
    saved = PatchMap.of(cells(), seed=0)
    arrays = {name: getattr(saved.cells, name) for name in ("per_example", "defined", "clean", "corrupt")}
    drawn = ("effect", "low", "high", "remaining", "remaining_low", "remaining_high")
    arrays |= {name: getattr(saved, name) for name in drawn}
    raw = saved.to_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["acdc"])["header"])
    assert PatchMap.from_bytes(pack(header, arrays)).to_bytes() == raw
    for changed, message in [
        ({**header, "format": "acdc-patch-map/2"}, "this version reads acdc-patch-map/1"),
        ({key: value for key, value in header.items() if key != "axes"}, "does not describe a map"),
        ({**header, "groups": header["groups"][:-1]}, "the axes need"),
        ({**header, "base": "dirty"}, "base is clean or corrupt"),
    ]:
        with pytest.raises(MapFileError, match=message):
            PatchMap.from_bytes(pack(changed, arrays))
    for name, array in [
        ("effect", saved.effect.astype(np.float32)),
        ("low", saved.low * np.nan),
        ("remaining", saved.remaining[:, :1]),
        ("clean", saved.cells.clean * np.inf),
    ]:
        with pytest.raises(MapFileError):
            PatchMap.from_bytes(pack(header, {**arrays, name: array}))


def test_a_map_without_a_finite_number_is_never_made() -> None:
    broken = cells().per_example.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(MapFileError, match="per_example holds a value that is not a finite number"):
        replace(cells(), per_example=broken)


def test_reading_a_map_loads_no_torch() -> None:
    code = "import sys, acdc.patch_map; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
