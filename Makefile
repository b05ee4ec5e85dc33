# Everything a developer runs. Needs GNU Make and Python 3.11 or newer, and makes its own
# environments: .venv with the newest OpenTelemetry, .venv-lowest with the lowest supported, and
# one for each peer that is benchmarked.
# `make help` lists the targets; another interpreter is chosen by `make PYTHON=python3.13 test`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
ARGS ?=
PEERS := opentelemetry logfire traceloop ddtrace
BIN := .venv/bin
SDK := -c 'from importlib.metadata import version; print("opentelemetry-sdk", version("opentelemetry-sdk"))'
PIP := -m pip --quiet --disable-pip-version-check --no-input

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target text; do \
		printf '  make %-14s %s\n' "$$target" "$$text"; \
	done

.PHONY: demo
demo: .venv/.project ## Run the demo on recorded speech, and keep its page open (ONCE=1 ends by itself)
	@$(BIN)/otel-tracker demo $(if $(ONCE),--once) $(ARGS)

.PHONY: test
test: .venv/.project ## Test with the newest OpenTelemetry (ARGS="-k name" picks tests)
	@$(BIN)/python $(SDK)
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: test-lowest
test-lowest: .venv-lowest/.project ## Test with the lowest supported OpenTelemetry
	@.venv-lowest/bin/python $(SDK)
	@.venv-lowest/bin/python -m pytest -p no:cacheprovider $(ARGS)

.PHONY: engines
engines: ## Build the Collector and Jaeger that the tests run, outside the tree (13 minutes, once)
	@scripts/engines/build.sh

.PHONY: check
check: .venv/.project ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

.PHONY: format
format: .venv/.project ## Format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

.PHONY: bench
bench: .venv/.project ## Run the benchmarks, then the peers'
	@$(BIN)/python -m benchmarks $(ARGS)
	@$(BIN)/python -m benchmarks.export
	@$(BIN)/python -m benchmarks.inlet
	@$(MAKE) --no-print-directory bench-peers ARGS=

.PHONY: bench-peers
bench-peers: $(PEERS:%=.venv-peer-%/.requirements) ## Compare the peers, each in its own environment
	@$(PYTHON) -m benchmarks.peers $(ARGS)

.PHONY: screenshots
screenshots: .venv/.project ## Make the README's pictures of the page anew (needs Chromium)
	@$(BIN)/python -m scripts.screenshots

.PHONY: clean
clean: ## Remove the environments, caches and builds
	rm -rf .venv .venv-lowest .venv-uv .venv-peer-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Pinned requirements -------------------------------------------------------------------------
# Compiled for every supported Python at once, with hashes, and without the address of an index.

COMPILE = .venv-uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make requirements" $(if $(UPGRADE),--upgrade)
PROJECT := pyproject.toml --extra dev --extra demo --extra auto --extra service --constraints requirements/pins.in

.PHONY: requirements
requirements: .venv-uv/.requirements ## Compile requirements/*.txt (UPGRADE=1 takes newer releases)
	@$(COMPILE) $(PROJECT) --output-file requirements/dev.txt
	@$(COMPILE) $(PROJECT) requirements/lowest-sdk.in --output-file requirements/lowest-sdk.txt
	@$(COMPILE) requirements/uv.in --output-file requirements/uv.txt
	@$(COMPILE) pyproject.toml --extra dashboard --extra demo --extra service --constraints requirements/dev.txt \
		--constraints requirements/pins.in --output-file deploy/requirements.txt
	@$(COMPILE) deploy/requirements-build.in --constraints requirements/dev.txt \
		--output-file deploy/requirements-build.txt
	@for peer in $(PEERS); do \
		$(COMPILE) requirements/peers/$$peer.in --output-file requirements/peers/$$peer.txt; \
	done
	@echo "Compiled requirements/*.txt, requirements/peers/*.txt and deploy/*.txt"

# --- Environments --------------------------------------------------------------------------------
# An environment is made anew when its requirements change; the project is installed into it again
# when pyproject.toml changes. The stamps are written last, so a broken run is repeated.

.venv/.requirements: requirements/dev.txt
.venv-lowest/.requirements: requirements/lowest-sdk.txt
.venv-uv/.requirements: requirements/uv.txt
$(PEERS:%=.venv-peer-%/.requirements): .venv-peer-%/.requirements: requirements/peers/%.txt

%/.requirements:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "otel-tracker needs Python 3.11 or newer, and '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2>&1 || true). Choose another: make PYTHON=python3.11 ..." >&2; \
		exit 1; \
	}
	@echo "Making $* from $< (a minute or two, this once)"
	@$(PYTHON) -m venv --clear $*
	@$*/bin/python $(PIP) install --require-hashes -r $<
	@touch $@

# pip cannot check the hash of a folder, so the project comes by itself. Its build backend is among
# the requirements, with a hash: nothing unpinned is fetched for the build.
%/.project: %/.requirements pyproject.toml
	@$*/bin/python $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.PRECIOUS: %/.requirements %/.project
