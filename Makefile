# Two commands do everything: `make serve` and `make test`. Each sets up .venv first when it is missing or out of date.
# `make test-clients` has an environment of its own, since some clients need older versions of packages than .venv has.
.DEFAULT_GOAL := help
VENV   := .venv
BIN    := $(VENV)/bin
CLIENTS := .venv-clients
# The first interpreter that is Python 3.12 or newer; empty when there is none.
PYTHON := $(shell for p in python3 python3.13 python3.12; do \
	"$$p" -c 'import sys; raise SystemExit(sys.version_info < (3, 12))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
# GPU hosts: make serve EXTRAS=cuda13
EXTRAS ?=
ARGS   ?=
# Processes of `make test`. Tests that share a server, or the fixtures of a file, stay together.
JOBS   ?= 2
comma  := ,
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help serve test test-clients lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "mistral-jax needs Python 3.12 or newer: none of python3, python3.13, python3.12 is one." >&2; \
	  echo "Install it (Debian: apt install python3.12 python3.12-venv; pyenv: pyenv install 3.12; macOS: brew install python@3.12)" >&2; \
	  echo "and run make again." >&2; exit 1; fi
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "The venv module is missing (Debian: apt install python3-venv)." >&2; exit 1; }

# One stamp for each set of packages, so that each command installs only what it needs.
$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing mistral-jax$(if $(EXTRAS),[$(EXTRAS)]) (a few hundred MB the first time)"
	@$(PIP) --editable ".$(if $(EXTRAS),[$(EXTRAS)])"
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing mistral-jax and its test tools"
	@$(PIP) --editable ".[test$(if $(EXTRAS),$(comma)$(EXTRAS))]"
	@touch $@ $(VENV)/.serve

$(VENV)/.lint: pyproject.toml constraints.txt | $(VENV)/.test
	@$(PIP) --editable ".[test,lint]"
	@touch $@

serve: $(VENV)/.serve  ## install, then serve the bundled demo model on localhost:1234 (ARGS="--port 8000" for options)
	@echo "The command mistral-jax is in $(BIN): source $(BIN)/activate, or write $(BIN)/mistral-jax"
	@exec $(BIN)/mistral-jax $(ARGS) demo

test: $(VENV)/.test  ## install, then run the tests (ARGS="-k cache" for options, JOBS=0 for a single process)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

# Without the versions of constraints.txt: the newest of each client that the others allow.
$(CLIENTS)/.ready: pyproject.toml | $(BIN)/python
	@echo "Installing the clients that are tested (about 1.8 GB, in $(CLIENTS))"
	@$(BIN)/python -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test,clients]"
	@touch $@

test-clients: $(CLIENTS)/.ready  ## install every client that is tested, then run their tests
	@$(CLIENTS)/bin/python -m pytest tests/clients $(ARGS)

lint: $(VENV)/.lint  ## format check, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports --verbose

format: $(VENV)/.lint  ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.serve  ## time prefill and decode of the demo model (ARGS="-m MODEL --dtype bfloat16")
	@$(BIN)/mistral-jax bench $(ARGS)

clean:  ## remove the environment and every cache
	@rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
