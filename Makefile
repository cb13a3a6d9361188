# Needs make and Python 3.11 or newer; everything else goes into .venv. Another Python: PYTHON=python3.12 make demo

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
COMPOSE ?= docker compose
ENGINE ?= docker

.PHONY: help demo up test test-faults test-mutations bench bench-bulk compose-test check

help: ## List what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  %-14s %s\n' "$$target" "$$text"; done

demo: $(READY) ## Watch two workers create, snapshot, expand and restore 100 volumes, on servers of its own
	@$(BIN)/cistern demo

up: $(READY) ## Run Cistern here, without Docker, until Ctrl-C
	@$(BIN)/cistern up

test: $(READY) ## Run the tests
	$(BIN)/python -m pytest --numprocesses 4 --dist worksteal

test-faults: $(READY) ## Strike whole stacks down, again and again, for a quarter of an hour; report in build/faults.md
	CISTERN_LONG=1 $(BIN)/python -m pytest tests/acceptance/test_storms.py tests/integration/test_simulation.py

test-mutations: $(READY) ## Take out what holds the promise, piece by piece, and see the tests fail each time
	$(BIN)/python -m tests.mutation

compose-test: $(READY) ## Run docker-compose.yaml with four workers, kill one; COMPOSE="docker compose" ENGINE=docker
	@$(BIN)/python -m tests.compose "$(COMPOSE)" "$(ENGINE)"

bench: $(READY) .venv-peers/.ready .venv-peers-redis5/.ready ## Measure Cistern beside its peers; half an hour
	@$(BIN)/python benchmarks/race.py

bench-bulk: $(READY) ## Measure what a bulk expansion costs, beside a naive one and beside one statement; some ten minutes
	@$(BIN)/python benchmarks/bulk.py

check: $(READY) ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=benchmarks:tests/support/drivers $(BIN)/mypy benchmarks
	$(BIN)/lint-imports

# The lock says every version, so pip has nothing to find out for the project itself, nor to build it with.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Cistern needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1 || true): try PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up .venv (once; it takes a minute)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

# The peers have Pythons of their own, for their requirements go neither with ours nor all with each other.
.venv-%/.ready: benchmarks/%.lock
	@echo "Setting up .venv-$* (once)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@
