# make run: serve on :8000 · make test: everything, on real parts · make lint: what CI holds
# make test PYTHON=python3.13 VENV=.venv-3.13: on another Python, in an environment of its own
# make coverage: the tests, and how much of the code they and what they start have run
# make test-native: the Rust crates alone · make test-msrv: with the oldest Rust they claim
# make fuzz: the native path against its Python twin
# make dist: the packages of a release · make test-dist: what they hold and need
# make lock: the versions in the image, written anew
# make test-api: /openapi.json against a server, by schemathesis; ARGS="--seed 7 --max-examples 1000" asks for more
# make test-bench: the benches themselves · make protocol: the wire protocol as a text, after a change of a message
# make scale: thousands of relays, with a load generator in Rust · make peers: beside a bare epoll loop and other brokers
# make bench: latency, with ARGS=--baseline beside an ordinary service · make memory: a connection's and a user's
# make fill: samples a second into the database, beside psql
# make chaos: random faults on a live system, and a checker of the promises
# make attack: what one client can do to a server and to its neighbours

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CRATE := src/native
GENERATOR := benches/generator
NATIVE := $(wildcard $(CRATE)/*.rs $(CRATE)/Cargo.*)
TESTERS ?= 2# processes that share all tests; those that ARGS choose are run by one

COVERED ?= 97# percent of the lines, at least

.PHONY: run test coverage test-api test-bench test-native test-msrv test-dist dist lock bench scale peers memory fill chaos attack fuzz lint protocol clean

run: $(VENV)/ready
	@$(BIN)/zander serve

test: $(VENV)/ready-dev
	$(BIN)/pytest $(or $(ARGS),-n $(TESTERS) --dist worksteal)

coverage: $(VENV)/ready-dev
	rm -f .coverage .coverage.*
	COVERAGE_CORE=sysmon $(BIN)/coverage run -m pytest $(or $(ARGS),-n $(TESTERS) --dist worksteal)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=$(COVERED)

test-api: $(VENV)-api/ready
	PYTHONPATH=tests $(VENV)-api/bin/python -m api $(ARGS)

test-bench: $(VENV)/ready-dev
	$(BIN)/pytest tests/bench $(ARGS)

bench: $(VENV)/$(if $(filter --baseline,$(ARGS)),ready-bench,ready-dev)
	$(BIN)/python benches/latency.py $(ARGS)

scale: $(VENV)/ready-dev
	$(BIN)/python benches/scale.py $(ARGS)

peers: $(VENV)/ready-dev
	$(BIN)/python benches/peers.py $(ARGS)

memory: $(VENV)/ready-dev
	$(BIN)/python benches/memory.py $(ARGS)

fill: $(VENV)/ready-dev
	$(BIN)/python benches/fill.py $(ARGS)

chaos: $(VENV)/ready-dev
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

attack: $(VENV)/ready-dev
	PYTHONPATH=tests $(BIN)/python -m attack $(ARGS)

# Two wheels for one release: with the native path for this machine, and without it for every other. setuptools takes
# the crate into the source package only when a MANIFEST.in names it; what is committed is packed, and nothing else.
dist: $(VENV)/ready-dev
	rm -rf dist build/dist && mkdir -p build/dist
	git archive HEAD | tar --extract --directory build/dist
	echo "graft $(CRATE)" > build/dist/MANIFEST.in
	$(BIN)/python -m build --outdir dist build/dist
	sed -i.bak '/^\[\[tool.setuptools-rust/,/^$$/d; /^\[tool.distutils/,/^$$/d' build/dist/pyproject.toml
	$(BIN)/python -m build --wheel --outdir dist build/dist

test-dist: dist
	$(BIN)/pytest tests/packages $(ARGS)

LOCKED := $(BIN)/uv pip compile --quiet --python-version 3.13 --python-platform linux --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --upgrade --custom-compile-command "make lock"

lock: $(VENV)/ready-dev
	$(LOCKED) --extra server --output-file src/requirements.txt pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $(LOCKED) --output-file src/requirements-build.txt -

# The compiler that Cargo.toml claims, which is that of the image: clippy knows what it lacks of the library, not of the language.
MSRV = $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' $(CRATE)/Cargo.toml)

test-msrv: $(CRATE)/Cargo.toml $(GENERATOR)/Cargo.toml
	rustup toolchain install --no-self-update --profile minimal $(MSRV)
	for crate in $^; do cargo +$(MSRV) check --quiet --locked --all-targets --manifest-path $$crate || exit; done

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

# An environment of its own: schemathesis takes only some versions of hypothesis and pytest.
$(VENV)-api/ready: pyproject.toml $(NATIVE)
	@echo "Setting up $(VENV)-api for schemathesis (once, about a minute) …"
	@$(PYTHON) -m venv $(VENV)-api
	@$(VENV)-api/bin/pip install --quiet --disable-pip-version-check --editable '.[api]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-api build src/*.egg-info $(CRATE)/target $(GENERATOR)/target src/zander/*.so
