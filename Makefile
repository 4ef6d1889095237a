# Entry points of the project: `make help` lists them. Everything produced lies under build/.

PYTHON ?= python3
VENV   ?= build/venv
SHELL  := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help check-python install lint format types test test-only test-long protos bench-store clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Names the one command that mends what is missing, before anything is written.
check-python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no $(PYTHON); run: sudo apt-get install -y python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $$($(PYTHON) --version) is not one of 3.11, 3.12, 3.13; run:" \
	       "sudo apt-get install -y python3.11 python3.11-venv && make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  version=$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])'); \
	  echo "error: $$version lacks ensurepip; run: sudo apt-get install -y $$version-venv" >&2; exit 1; }

install: $(INSTALLED) ## create build/venv with the project (editable) and its development tools

$(INSTALLED): pyproject.toml | check-python
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lint: $(INSTALLED) ## ruff on Python, buf on the protocols
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint proto

format: $(INSTALLED) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## mypy --strict over code and tests
	$(BIN)/mypy

test: lint types test-only ## install, lint, types, tests: what a change must pass

test-only: $(INSTALLED)
	$(BIN)/python -m pytest

test-long: $(INSTALLED) ## the suites that take minutes
	$(BIN)/python -m pytest -m long

protos: | check-python ## regenerate the stubs beside proto/*/v1/*.proto
	PYTHON=$(PYTHON) proto/generate

bench-store: $(INSTALLED) ## the store against its peers; writes build/bench/store.json
	$(BIN)/python -m loadtest.bench_store

clean: ## remove build/, the environment included
	rm -rf build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
