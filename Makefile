# make run    serve the built-in demo on http://127.0.0.1:8000
# make test   run every test, installing what they need
# make lint   formatting, lint, types
# make bench  measure beside the peers, 20 minutes; make bench-quick: some of it, 2 minutes; bench-journal, bench-more: the rest

PYTHON ?= python3
UV_VERSION := 0.13.8
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
ARGS ?=

.PHONY: run test lint lock parts bench bench-quick bench-journal bench-more peers

run: .venv/core
	@exec $(BIN)/penstock serve $(ARGS)

test: .venv/dev parts
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

# Of flake8-async: ASYNC124 is against async functions that don't await, which protocols and producers may have to be;
# ASYNC91x would have every path be a checkpoint, as only Trio itself must. Tests poll servers that are processes (110).
lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8-async --disable ASYNC124,ASYNC910,ASYNC911,ASYNC912,ASYNC913 $$(git ls-files -co --exclude-standard 'src/*.py')
	$(BIN)/flake8-async --disable ASYNC110,ASYNC124,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913 $$(git ls-files -co --exclude-standard 'tests/*.py' 'benchmarks/*.py' 'examples/*.py')
	$(BIN)/mypy

# The real parts that tests drive and PyPI does not have: Node, Chromium, npm packages.
parts:
	sh tests/install_parts.sh

# The figures and the plot of docs/performance.md, and what they are made from.
bench: .venv/peers peers
	$(BIN)/python benchmarks/compare.py --output benchmarks/results/bench.json
	$(BIN)/python benchmarks/crosscheck.py --rounds 2 --output benchmarks/results/crosscheck.json
	$(BIN)/python benchmarks/report.py

# The same for relays of a model, and for WebSocket beside SSE; 11 minutes, 15 at most.
bench-more: .venv/peers peers
	$(BIN)/python benchmarks/transports.py --output benchmarks/results/transports.json
	$(BIN)/python benchmarks/relay.py --output benchmarks/results/relay.json
	$(BIN)/python benchmarks/report.py

bench-quick: .venv/peers peers
	$(BIN)/python benchmarks/compare.py --quick

# The journals, workers, and resumed streams: the rest of that page.
bench-journal: .venv/dev peers
	$(BIN)/python benchmarks/journal.py --output benchmarks/results/journal.json
	$(BIN)/python benchmarks/resumable.py --output benchmarks/results/resumable.json
	$(BIN)/python benchmarks/report.py

# What is measured beside us and PyPI does not have: Node, Go, nginx with nchan; and wrk.
peers:
	sh benchmarks/install_peers.sh

# Renews both locks from pyproject.toml; they hold for every Python and platform, and name no index.
lock: $(BIN)/uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url pyproject.toml -o requirements/core.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url pyproject.toml --group dev -c requirements/core.txt -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url pyproject.toml --group peers -c requirements/core.txt -o requirements/peers.txt

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/core: requirements/core.txt pyproject.toml | $(BIN)/uv
	$(UV) --require-hashes -r requirements/core.txt
	$(UV) --no-deps -e .
	@touch $@

.venv/dev: requirements/dev.txt .venv/core
	$(UV) --require-hashes -r requirements/dev.txt
	@touch $@

.venv/peers: requirements/peers.txt .venv/core
	$(UV) --require-hashes -r requirements/peers.txt
	@touch $@
