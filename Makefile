# make run: serve on :8000 · make test: everything, on real parts · make lint: what CI holds
# make scale: thousands of relays, with a load generator in Rust
# make test-native: the Rust crates alone · make fuzz: the native path against its Python twin
# make test-bench: the benches themselves · make protocol: the wire protocol as a text, after a change of a message
# make bench: latency, with ARGS=--baseline beside an ordinary service · make memory: a connection's and a user's
# make fill: samples a second into the database, beside psql
# make chaos: random faults on a live system, and a checker of the promises

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CRATE := src/native
GENERATOR := benches/generator
NATIVE := $(wildcard $(CRATE)/*.rs $(CRATE)/Cargo.*)
TESTERS ?= 2# processes that share all tests; those that ARGS choose are run by one

.PHONY: run test test-bench test-native bench scale memory fill chaos fuzz lint protocol clean

run: $(VENV)/ready
	@$(BIN)/zander serve

test: $(VENV)/ready-dev
	$(BIN)/pytest $(or $(ARGS),-n $(TESTERS) --dist worksteal)

test-bench: $(VENV)/ready-dev
	$(BIN)/pytest tests/bench $(ARGS)

bench: $(VENV)/$(if $(filter --baseline,$(ARGS)),ready-bench,ready-dev)
	$(BIN)/python benches/latency.py $(ARGS)

scale: $(VENV)/ready-dev
	$(BIN)/python benches/scale.py $(ARGS)

memory: $(VENV)/ready-dev
	$(BIN)/python benches/memory.py $(ARGS)

fill: $(VENV)/ready-dev
	$(BIN)/python benches/fill.py $(ARGS)

chaos: $(VENV)/ready-dev
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

test-native: $(CRATE)/Cargo.toml $(GENERATOR)/Cargo.toml
	for crate in $^; do cargo test --quiet --locked --manifest-path $$crate || exit; done
	for crate in $^; do cargo clippy --quiet --locked --all-targets --manifest-path $$crate -- --deny warnings || exit; done
	for crate in $^; do cargo fmt --check --manifest-path $$crate || exit; done

fuzz: $(VENV)/ready-dev
	PYTHONPATH=tests $(BIN)/python tests/native/fuzz.py $(ARGS)

lint: $(VENV)/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

protocol: $(VENV)/ready-dev
	$(BIN)/python -m zander.routes.docs.protocol > src/zander/routes/docs/protocol.md

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml $(NATIVE) | $(BIN)/python
	@echo "Setting up $(VENV) (once, about a minute) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local]'
	@touch $@

$(VENV)/ready-dev: pyproject.toml $(NATIVE) | $(BIN)/python
	@echo "Setting up $(VENV) for development (once, about a minute) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/ready

$(VENV)/ready-bench: pyproject.toml $(NATIVE) | $(BIN)/python
	@echo "Setting up $(VENV) for the baseline (once, about 30 s) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@ $(VENV)/ready-dev $(VENV)/ready

clean:
	rm -rf $(VENV) build src/*.egg-info $(CRATE)/target $(GENERATOR)/target src/zander/*.so
