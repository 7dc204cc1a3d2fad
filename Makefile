# `make run` and `make test` are for a newcomer, `make check` is for the loop of a contributor: CONTRIBUTING.md.
# Each makes what it needs from python3 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet
# Touched when what the run, or the tests as well, need is installed.
RUNS   := $(VENV)/.ready-to-run
TESTS  := $(VENV)/.ready-to-test
# Whatever changes what has to be installed.
NEEDS  := pyproject.toml constraints.txt requirements.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: run check test lint types docs clean

run: $(RUNS)
	$(BIN)/stackwise run stackwise.toml

# All but the tests that are marked slow.
check: lint types
	$(BIN)/python -m pytest -n 2 -m "not slow"

test: lint types
	$(BIN)/python -m pytest -n 2

lint: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TESTS)
	$(BIN)/mypy

# Writes docs/config.md, the tables of docs/hooks and the drawing of the rooms from the code; tests hold them.
docs: $(TESTS)
	$(BIN)/python docs/make_config_reference.py
	$(BIN)/python docs/make_field_tables.py
	$(BIN)/python docs/make_architecture.py

$(RUNS): $(NEEDS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

# The tests need all that the run does, and more.
$(TESTS): $(NEEDS) requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	touch $(RUNS) $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
