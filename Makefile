# Needs make and Python 3.11 or newer; everything else goes into .venv. Another Python: PYTHON=python3.12 make demo

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
COMPOSE ?= docker compose
ENGINE ?= docker

.PHONY: help secrets demo up test test-changed test-long bench bench-bulk compose-test check docs client coverage screenshots

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  %-14s %s\n' "$$target" "$$text"; done

demo: $(READY) ## Create, snapshot, expand and restore 100 volumes with two workers, on private servers
	@$(BIN)/cistern demo

up: $(READY) ## Run the API and workers on private servers until Ctrl-C
	@$(BIN)/cistern up

secrets: ## Make random passwords for docker-compose.yaml, in secrets/ and .env, unless they exist
	@$(PYTHON) deploy/make_secrets.py

# The tests start many interpreters: keep their bytecode.
test: export PYTHONDONTWRITEBYTECODE =
test: $(READY) ## Run all tests, with short storms
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal

test-changed: $(READY) ## Run the mutations of files that differ from BASE (see python -m tests.mutation --help)
	$(BIN)/python -m tests.mutation --changed $(BASE)

test-long: $(READY) ## Run all mutations, and at full length what make test shortens; report in build/faults.md
	CISTERN_TEST_LONG=1 $(BIN)/python -m pytest tests/acceptance/test_storms.py tests/acceptance/test_failover.py \
		tests/acceptance/test_connection_limit.py tests/acceptance/test_idle_connections.py tests/acceptance/test_crowded_api.py \
		tests/acceptance/test_api_fuzz.py tests/acceptance/test_node_transitions.py tests/integration/test_schedules_day.py tests/integration/test_simulation.py
	$(BIN)/python -m tests.mutation

compose-test: $(READY) ## Run docker-compose.yaml with four workers, kill one; COMPOSE="docker compose" ENGINE=docker
	@$(BIN)/python -m tests.compose "$(COMPOSE)" "$(ENGINE)"
	@CISTERN_TEST_LONG=1 $(BIN)/python -m pytest -s tests/acceptance/test_podman.py tests/acceptance/test_volume_in_use.py

PEERS := peers peers-redis5 peers-oban peers-node

bench: $(READY) $(PEERS:%=.venv-%/.ready) ## Measure Cistern beside its peers; 35 minutes
	@$(BIN)/python benchmarks/race.py

bench-bulk: $(READY) ## Measure a bulk expansion beside a naive one and beside a single statement; ten minutes
	@$(BIN)/python benchmarks/bulk.py

check: $(READY) ## Check style, types and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks:tests/support/drivers $(BIN)/mypy benchmarks
	$(BIN)/lint-imports

screenshots: $(READY) ## Take pictures of every page of the dashboard, in build/screenshots; needs Chromium
	@$(BIN)/python docs/screenshots.py

docs: $(READY) ## Build the documentation into build/site, strictly and offline
	@$(BIN)/python docs/build.py

CLIENT ?= clients/python

client: $(READY) ## Generate the typed Python client from the OpenAPI document, in clients/python (CLIENT=...)
	@$(BIN)/python clients/generate.py "$(CLIENT)"

COVERED ?= tests/unit tests/integration

coverage: $(READY) ## Run unit and integration tests (COVERED=...) and report what they do not reach, in build/coverage
	@mkdir -p build/coverage && rm -f build/coverage/data*
	$(BIN)/coverage run -m pytest --numprocesses 2 --dist worksteal $(COVERED)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

# The lock names every version, build tools included: pip resolves nothing, and installs the project without isolation.
# Installing also generates the stubs of the CSI plugin.
$(READY): requirements.lock pyproject.toml api/csi/csi.proto api/csi/generate.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Cistern needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1 || true): try PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (once; it takes a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

# Peers have virtual environments of their own: their requirements conflict with ours, and partly with each other.
.venv-%/.ready: benchmarks/%.lock
	@echo "Setting up .venv-$* (once)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

# Node.js comes from a Python package; npm installs the peers on it.
.venv-peers-node/.ready: benchmarks/peers-node.lock benchmarks/peers/node/package-lock.json
	@echo "Setting up .venv-peers-node (once)"
	@$(PYTHON) -m venv .venv-peers-node
	@.venv-peers-node/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@.venv-peers-node/bin/npm ci --prefix benchmarks/peers/node --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# Without a Python that is new enough Oban does not take part. One that is not on the PATH: PYTHON_OBAN=... make bench
.venv-peers-oban/.ready: benchmarks/peers-oban.lock
	@for python in $(PYTHON_OBAN) $(PYTHON) python3.14 python3.13 python3.12; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
			echo "Setting up .venv-peers-oban (once)" && $$python -m venv .venv-peers-oban && \
			.venv-peers-oban/bin/python -m pip --disable-pip-version-check install --quiet --requirement $< && \
			touch $@; exit; \
		fi; \
	done; echo "Oban needs Python 3.12 or newer: it is left out"
