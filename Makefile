# make run: serve on :8000 · make test: everything, on real parts · make lint: what CI holds
# make bench: latency · make chaos: random faults on a live system, and a checker of the promises

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test bench chaos lint clean

run: $(VENV)/ready
	@$(BIN)/zander serve

test: $(VENV)/ready-dev
	$(BIN)/pytest $(ARGS)

bench: $(VENV)/ready-dev
	$(BIN)/python benches/latency.py $(ARGS)

chaos: $(VENV)/ready-dev
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) (once, about 20 s) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local]'
	@touch $@

$(VENV)/ready-dev: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) for development (once, about 30 s) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/ready

clean:
	rm -rf $(VENV) build src/*.egg-info
