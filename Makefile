# `make check` does everything a change must pass. PYTHON may name the interpreter of a virtual environment.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: check format lint types layers test slow bench

check: lint types layers test

format:
	$(BIN)ruff format .
	$(BIN)ruff check --fix .

lint:
	$(BIN)ruff format --check .
	$(BIN)ruff check .

types:
	$(BIN)mypy

layers:
	$(BIN)lint-imports

test:
	$(BIN)pytest

slow:
	$(BIN)pytest -m slow

bench:
	$(PYTHON) -m benchmarks.sealed_path
	$(PYTHON) -m benchmarks.identity
	$(PYTHON) -m benchmarks.single_use
	$(PYTHON) -m benchmarks.audit_log
