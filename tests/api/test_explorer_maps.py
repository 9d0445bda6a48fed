"""Patching maps in the explorer, in a real Chromium."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from api_samples import HOSTILE, PAIRS
from store_samples import patch_map

from acdc.spec import parse_job
from acdc.store import Artefacts, NewMap, Store

pytestmark = pytest.mark.browser

if not (shutil.which("chromium") and shutil.which("chromedriver")) and not os.environ.get("CI"):
    pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver", allow_module_level=True)

from test_explorer_in_browser import Browser, browser, chromium  # noqa: E402, F401 - after the skip; fixtures


@pytest.fixture
def hostile_job(store: Store, artefacts: Artefacts) -> str:
    """A map whose every text that a person or a file can set tries to run a script; the job that made it."""
    task = {"name": "custom", "pairs": PAIRS}
    spec = parse_job({"kind": "patch", "task": task, "name": HOSTILE, "tags": [HOSTILE], "notes": HOSTILE})
    job = store.jobs.submit(spec, user="local").job
    claim = store.claims.claim("worker", "default")
    assert claim is not None
    made = patch_map()
    metric, layer, place = made.cells.axes
    cells = replace(made.cells, axes=(metric, layer, replace(place, labels=(HOSTILE, "end"))))
    made = replace(made, cells=cells)
    store.claims.succeed(claim, [NewMap("map", made, artefacts.put(made.to_bytes()))])
    return job.id


def test_map_is_found_from_its_job_and_shown_as_picture_and_numbers(
    browser: Browser,  # noqa: F811
    hostile_job: str,
) -> None:
    browser.open(f"/jobs/{hostile_job}")
    browser.find("main a[href^='#/maps/']").click()
    picture = "return [...document.querySelectorAll('figure img')].filter(i => i.naturalWidth > 0).length"
    browser.until(lambda driver: driver.execute_script(picture) == 1)
    for text in ("activation patching", "2 layer × 2 place", "3; 2 have a 95 % interval without 0", "denoising"):
        browser.until_text(text)
    assert browser.driver.find_elements("css selector", "main img:not(figure img)") == []
    assert HOSTILE in browser.find("table td:nth-child(2)").text


def test_list_of_maps_names_the_strongest_cell(browser: Browser, hostile_job: str) -> None:  # noqa: F811
    browser.open("/maps")
    browser.until_text(f"layer 1, place {HOSTILE}")
    browser.open("/maps?kind=causal_tracing")
    browser.until_text("No such maps")
