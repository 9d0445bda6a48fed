# One verb a target; `make help` lists them. Works with GNU make 3.81 (macOS) and later.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Only what stands in the torch line: pip must not choose another build before the rest asks for it.
TORCH := $(shell grep '^torch==' constraints.txt)
# -qq: progress is told by the lines below, and what goes wrong is still printed.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq

.DEFAULT_GOAL := help
.PHONY: setup browser demo test test-long check format docs serve bench-engine bench-patching bench-exact bench-circuits bench-methods bench-truth bench-coverage truth-tracr truth-siit peers pins clean help

setup: $(READY)  ## make the virtual environment (other targets do this themselves)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; sys.exit(0 if v >= (3, 11) else "Python 3.11 or later is needed and $(PYTHON) is %d.%d.%d; try: make PYTHON=python3.12 setup" % v)'
	@echo "setup 1/4: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module failed; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "setup 2/4: $(TORCH) (the largest download)"
	@$(PIP) -c constraints.txt "$(TORCH)"
	@echo "setup 3/4: everything else of constraints.txt"
	@$(PIP) -c constraints.txt -e ".[dev]"
	@echo "setup 4/4: done"
	@touch $@

demo: $(READY)  ## find a circuit of a small real model over HTTP, in a few minutes
	@$(BIN)/acdc demo --out build

# The explorer is tested in a real browser. Where it can be installed it is; elsewhere those tests say that they skip.
browser:  ## install chromium for the tests of the explorer, where that is possible
	@if ! command -v chromedriver >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "setup: chromium and its driver, for the tests of the explorer"; \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium chromium-driver; } \
	    >build-browser.log 2>&1 && rm -f build-browser.log || { tail -n 5 build-browser.log; rm -f build-browser.log; }; \
	fi

test: $(READY) browser  ## run the tests
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(READY)  ## exact search against its oracle, many more random searches than in the tests; tens of minutes
	@$(BIN)/python -m pytest --hypothesis-profile=long --timeout=3600 tests/engine/test_fast_search.py -k every_decision

check: $(READY)  ## format, lint, types, import rules, drift of generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/generate.py --check

format: $(READY)  ## lay out and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --select I .

docs: $(READY)  ## write docs/reference from the code
	$(BIN)/python docs/generate.py

serve: $(READY)  ## start the service on this machine, with the explorer
	@$(BIN)/acdc serve

bench-engine: $(READY)  ## what the engine costs next to the bare model; writes build/bench_engine.json
	@mkdir -p build
	@$(BIN)/python benchmarks/engine.py

bench-patching: $(READY)  ## patching maps next to a loop with one hook per cell; writes build/bench_patching.json
	@mkdir -p build
	@$(BIN)/python benchmarks/patching.py

bench-exact: $(READY)  ## exact ACDC next to bare forwards, its oracle and auto-circuit; two hours
	@$(MAKE) -s peers || echo "auto-circuit could not be installed: its figures are left out"
	@$(BIN)/python benchmarks/exact.py

bench-circuits: $(READY)  ## the circuit exact search finds with 64 prompts, beside attribution's; resumable
	@mkdir -p build
	@$(BIN)/python benchmarks/circuits.py

bench-methods: $(READY)  ## the scoreboard: every method on real models and tasks; many hours, resumable
	@mkdir -p build
	@$(BIN)/python benchmarks/methods.py

bench-truth: $(READY)  ## every method on models whose circuit is known; writes build/bench_truth.json
	@mkdir -p build
	@$(BIN)/python benchmarks/known_circuits.py

bench-coverage: $(READY)  ## how often the interval of stability contains the truth; writes build/bench_coverage.json
	@mkdir -p build
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/stability_coverage.py

# The models that bench-truth runs on are stored. These two make them anew, at development time.
TRACR := build/truth/tracr
TRUTHS := acdc/evaluation/truth/data

truth-tracr: $(READY) $(TRACR)/.ready  ## compile the programs with tracr and find their circuits by cutting every edge
	@$(TRACR)/bin/python benchmarks/truth/compile_tracr.py $(TRUTHS)/tracr
	@$(BIN)/python benchmarks/truth/find_truths.py

$(TRACR)/.ready: benchmarks/truth/tracr.txt
	@echo "truth: tracr in $(TRACR)"
	@$(PYTHON) -m venv $(TRACR)
	@$(TRACR)/bin/python -m pip --disable-pip-version-check install -qq -r benchmarks/truth/tracr.txt
	@touch $@

truth-siit: $(READY)  ## train the models that hold a known program; about an hour
	@$(BIN)/python benchmarks/truth/train_siit.py

# What others wrote is run in environments of its own: it needs older packages than ours.
PEERS := build/peers/auto_circuit

peers: $(PEERS)/.ready  ## install the peers that benchmarks compare with, apart from the rest

$(PEERS)/.ready: benchmarks/peers/auto_circuit.txt constraints.txt
	@echo "peers: auto-circuit in $(PEERS)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install -qq "$(TORCH)"
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install -qq "$(TORCH)" -r benchmarks/peers/auto_circuit.txt
	@touch $@

# A new environment from pyproject.toml alone, but for torch, written down. The header of the file is kept.
pins:  ## renew constraints.txt
	@rm -rf build/pins && mkdir -p build && $(PYTHON) -m venv build/pins
	@echo "pins 1/2: installing without constraints, but for $(TORCH)"
	@build/pins/bin/python -m pip --disable-pip-version-check install -qq "$(TORCH)"
	@build/pins/bin/python -m pip --disable-pip-version-check install -qq "$(TORCH)" ".[dev]"
	@echo "pins 2/2: writing constraints.txt"
	@grep '^#' constraints.txt > build/pins/new.txt
	@build/pins/bin/python -m pip freeze | grep -v '^acdc-service' | sed 's/^\(torch==[0-9.]*\)+.*/\1/' >> build/pins/new.txt
	@mv build/pins/new.txt constraints.txt && rm -rf build/pins

clean:  ## remove the virtual environment and everything that was built
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find acdc workers migrations tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 18
