# Two commands for a newcomer: `make run` and `make test`. Each makes what it needs from python3 and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Whatever changes what has to be installed.
NEEDS  := pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)

.PHONY: run test lint types docs clean

run: $(READY)
	$(BIN)/stackwise run stackwise.toml

test: lint types
	$(BIN)/python -m pytest -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# Writes docs/config.md and the tables of docs/hooks from the code's own words; tests hold them up to date.
docs: $(READY)
	$(BIN)/python docs/make_config_reference.py
	$(BIN)/python docs/make_field_tables.py

$(READY): $(NEEDS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
