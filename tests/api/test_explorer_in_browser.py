"""The explorer in a real Chromium: what people see, and that nothing they are shown is run."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from api_samples import HOSTILE, SPEC, finish, make_circuit

from acdc.circuit import Circuit, Selected
from acdc.graph import Graph
from acdc.spec import parse_job
from acdc.store import Artefacts, Store

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and not os.environ.get("CI"):
    pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402 - after the skip: newcomers may lack it too
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run --window-size=1300,1600"
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    assert CHROMIUM, "this test run must have chromium and chromedriver"
    assert DRIVER, "this test run must have chromium and chromedriver"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Browser:
    """What the tests do with one page."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, page: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#{page}")

    def until(self, what: Callable[[webdriver.Chrome], object]) -> None:
        WebDriverWait(self.driver, 20, poll_frequency=0.05, ignored_exceptions=[Exception]).until(what)

    def until_text(self, text: str) -> None:
        self.until(lambda _: text in self.text)

    def find(self, css: str) -> webdriver.remote.webelement.WebElement:
        self.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, css))
        return self.driver.find_element(By.CSS_SELECTOR, css)

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def complaints(self) -> list[str]:
        """What the console says, refused requests that a test provoked left out."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["source"] != "network"]


@pytest.fixture
def browser(chromium: webdriver.Chrome, served: str) -> Iterator[Browser]:
    page = Browser(chromium, served)
    yield page
    complaints = page.complaints()
    chromium.get("about:blank")
    assert complaints == []


@pytest.fixture
def hostile_circuit(store: Store, artefacts: Artefacts) -> str:
    """Every text that a person or a file can set tries to run a script."""
    circuit = make_circuit(title=HOSTILE, spec=parse_job(SPEC).model_dump(mode="json"))
    digest = artefacts.put(circuit.to_bytes())
    row = store.circuits.add(circuit, digest, user="local", name=HOSTILE, tags=[HOSTILE], notes=HOSTILE)
    return row.id


def test_circuit_page_shows_pictures_numbers_and_edges(browser: Browser, hostile_circuit: str) -> None:
    browser.open(f"/circuits/{hostile_circuit}")
    pictures = "return [...document.querySelectorAll('figure img')].filter(i => i.naturalWidth > 0).length"
    browser.until(lambda driver: driver.execute_script(pictures) == 2)
    for text in (
        "0 edges hidden by the threshold",
        "The behaviour is shown",
        "k*, the smallest circuit",
        "unstable: mean Jaccard 0.71 over 200 resamples of 12 groups (64 prompts)",
        "embed",
        "resample",
    ):
        browser.until_text(text)
    assert browser.driver.find_elements(By.CSS_SELECTOR, "main img:not(figure img)") == []
    assert HOSTILE in browser.driver.find_element(By.TAG_NAME, "h2").text


def test_threshold_says_how_many_edges_it_hides(browser: Browser, store: Store, hostile_circuit: str) -> None:
    n_edges = store.circuits.get(hostile_circuit).row.n_edges
    assert n_edges > 30
    browser.open(f"/circuits/{hostile_circuit}")
    Select(browser.find("select[name=max_edges]")).select_by_value("30")
    browser.until_text(f"{n_edges - 30} edges hidden by the threshold")


def test_job_page_shows_the_end_of_a_long_log(browser: Browser, store: Store) -> None:
    job = store.jobs.submit(parse_job(SPEC), user="local").job
    claim = store.claims.claim("worker-1", "default")
    assert claim is not None
    store.claims.add_log(claim, [f"line {n}" for n in range(1, 2501)])
    store.claims.fail(claim, "internal", "the end of the job's log says why")
    browser.open(f"/jobs/{job.id}")
    browser.until_text("Log (the last 1,000 of 2,500 lines)")
    shown = str(browser.driver.execute_script("return document.querySelector('details pre').textContent")).split("\n")
    assert (shown[0], shown[-1], len(shown)) == ("line 1501", "line 2500", 1000)


def test_job_page_follows_a_running_job_to_its_end(browser: Browser, store: Store, artefacts: Artefacts) -> None:
    job = store.jobs.submit(parse_job(SPEC), user="local").job
    browser.open(f"/jobs/{job.id}")
    browser.until_text("queued")
    circuit_id = finish(store, artefacts)
    browser.until_text("succeeded")
    browser.find(f'a[href="#/circuits/{circuit_id}"]').click()
    browser.until_text("Faithfulness")


def test_search_is_submitted_and_cancelled_by_hand(browser: Browser, store: Store) -> None:
    browser.open("/new")
    Select(browser.find("select[name=method]")).select_by_value("eap-ig-inputs")
    steps = browser.find("input[name=steps]")
    steps.clear()
    steps.send_keys("7")
    browser.find("button.main").click()
    browser.until_text("queued")
    (job,) = store.jobs.list().items
    assert job.spec["method"]["steps"] == 7
    browser.driver.find_element(By.XPATH, "//button[text()='Cancel']").click()
    browser.until_text("cancelled")


@pytest.mark.parametrize(("typed", "sent"), [("1", 1), ("1.0", 1.0), ("all", 1.0), ("0.5", 0.5), ("20", 20)], ids=str)
def test_one_edge_and_all_edges_are_told_apart_in_the_form(
    browser: Browser, store: Store, hostile_circuit: str, typed: str, sent: float
) -> None:
    browser.open(f"/circuits/{hostile_circuit}")
    browser.find("input[name=size]").send_keys(typed, Keys.ENTER)
    browser.until(lambda _: store.jobs.list().items)
    (job,) = store.jobs.list().items
    size = job.spec["selection"]["size"]
    assert (size, type(size)) == (sent, type(sent))


def test_a_size_that_is_none_is_not_taken_for_no_size(browser: Browser, store: Store, hostile_circuit: str) -> None:
    browser.open(f"/circuits/{hostile_circuit}")
    browser.find("input[name=size]").send_keys("half", Keys.ENTER)
    browser.until_text("give a number of edges (100), a share of them (0.01) or all, not 'half'")
    assert not store.jobs.list().items


def test_parameters_that_may_be_left_out_are_sent_as_numbers(browser: Browser, store: Store) -> None:
    browser.open("/new")
    for method, changed in {
        "edge-pruning": {"edges": "100", "warm_start": "0.5"},
        "acdc": {"edges": "7", "thresholds": ""},
    }.items():
        Select(browser.find("select[name=method]")).select_by_value(method)
        for name, typed in changed.items():
            browser.find(f"input[name={name}]").clear()
            browser.find(f"input[name={name}]").send_keys(typed, Keys.SPACE, Keys.BACKSPACE)
        browser.find("button.main").click()
        browser.until_text("queued")
        browser.open("/new")
    acdc, pruning = (job.spec["method"] for job in store.jobs.list().items)
    assert (pruning["edges"], pruning["warm_start"]) == (100, 0.5)
    assert (acdc["edges"], acdc["thresholds"]) == (7, [])


def test_faults_of_a_spec_are_all_shown(browser: Browser) -> None:
    browser.open("/new")
    box = browser.find("textarea[name=spec]")
    box.clear()
    box.send_keys('{"metric": "beauty", "seed": -1}')
    browser.find("button.main").click()
    browser.until_text("2 faults in the job spec")
    assert {"metric", "seed"} <= {
        item.text.split(":")[0] for item in browser.driver.find_elements(By.CSS_SELECTOR, "li")
    }


def test_prompt_is_tried_and_its_tables_are_shown(
    browser: Browser, store: Store, artefacts: Artefacts, hostile_circuit: str
) -> None:
    from acdc.store import NewTable

    browser.open(f"/circuits/{hostile_circuit}")
    browser.find("input[name=prompt]").send_keys("The capital of Gaul is", Keys.ENTER)
    browser.until(lambda _: store.jobs.list().items)
    claim = store.claims.claim("w", "default")
    assert claim
    store.claims.succeed(claim, [NewTable("try", {"model": [{"token": HOSTILE, "probability": 0.25}]})])
    browser.until_text("0.25")
    assert HOSTILE in browser.text


def test_a_split_circuit_says_its_roles_and_offers_no_prompt_to_try(
    browser: Browser, store: Store, artefacts: Artefacts
) -> None:
    """Nothing says where the roles are in a prompt typed in."""
    whole = make_circuit(spec=parse_job(SPEC).model_dump(mode="json"))
    graph = Graph(whole.graph.shape.split_by(("S2",)))
    scores = np.where(graph.legal, np.float32(0.5), np.float32(0))
    choices = replace(whole.provenance.choices, positions="S2, end, other")
    circuit = Circuit(
        graph,
        scores,
        graph.legal.copy(),
        graph.legal.copy(),
        Selected("absolute", graph.n_edges, graph.n_edges),
        replace(whole.provenance, choices=choices),
    )
    row = store.circuits.add(circuit, artefacts.put(circuit.to_bytes()), user="local")
    browser.open(f"/circuits/{row.id}")
    browser.until_text("S2, end, other")
    browser.until_text("0.0.q@S2")
    assert "Try it on a prompt" not in browser.text
    assert not browser.driver.find_elements(By.CSS_SELECTOR, "input[name=prompt]")
    browser.open(f"/circuits?edge={quote('embed->0.0.q')}")
    browser.find(f'a[href="#/circuits/{row.id}"]')


def test_filter_is_part_of_the_address(browser: Browser, hostile_circuit: str) -> None:
    browser.open("/circuits?task=ioi")
    browser.until_text("No such circuits")
    field = browser.find("input[name=task]")
    assert field.get_attribute("value") == "ioi"
    field.clear()
    field.send_keys("custom", Keys.ENTER)
    browser.find(f'a[href="#/circuits/{hostile_circuit}"]')


def test_every_control_has_a_name_and_the_keyboard_reaches_it(browser: Browser, hostile_circuit: str) -> None:
    for page in ("/circuits", "/jobs", "/new", f"/circuits/{hostile_circuit}"):
        browser.open(page)
        browser.find("main h2")
        nameless = browser.driver.execute_script(
            "return [...document.querySelectorAll('main input, main select, main textarea')]"
            ".filter(c => !c.labels.length).map(c => c.name)"
        )
        assert nameless == []
    browser.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    reached = set()
    for _ in range(60):
        reached.add(browser.driver.switch_to.active_element.tag_name)
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert {"a", "select", "input", "button"} <= reached


def test_key_is_asked_for_and_used(
    chromium: webdriver.Chrome, tmp_path: Path, store: Store, artefacts: Artefacts
) -> None:
    from api_samples import make_settings

    from acdc.api import create_app
    from acdc.api.server import Server, bind

    settings = make_settings(tmp_path, port=0, api_key="s3cret")
    listener = bind(settings)
    server = Server(create_app(settings, store, artefacts))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    page = Browser(chromium, "http://{}:{}".format(*listener.getsockname()))
    try:
        page.open("/jobs")
        page.find("input[type=password]").send_keys("s3cret", Keys.ENTER)
        page.until_text("No such jobs")
    finally:
        chromium.get("about:blank")
        chromium.get_log("browser")
        server.stop()
        thread.join(20)
    assert not thread.is_alive()
