# `make demo` and `make test` each set up what they need in .venv and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types figures clean

demo: $(VENV)/.demo
	$(BIN)/python examples/digits.py

test: $(VENV)/.test lint types
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

# Prints every table that README.md quotes and takes its pictures (which needs Chromium).
figures: $(VENV)/.test
	$(BIN)/python examples/digits.py
	$(BIN)/python -m benchmarks.efficacy
	$(BIN)/python -m benchmarks.false_alarms --write
	$(BIN)/python -m benchmarks.by_cause --write
	$(BIN)/python -m benchmarks.harm --write
	$(BIN)/python -m examples.recipes --write
	$(BIN)/python -m benchmarks.overhead --out benchmarks/overhead.json
	$(BIN)/python -m benchmarks.scale --out benchmarks/scale.json
	$(BIN)/python -m benchmarks.screenshots
	$(BIN)/python -m benchmarks.tab

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "deadwatch needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs .mypy_cache .pytest_cache .ruff_cache
