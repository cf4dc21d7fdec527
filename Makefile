# make quickstart   set up .venv and train the bundled encoder on the example text
# make test         set up .venv and run every check
# make lint         the checks without the tests: ruff, mypy, import rules
# make fix          let ruff fix and format what it can
# PIP_ARGS adds options to every pip install, for example an extra index with CPU builds of torch.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS)

.PHONY: install quickstart lint test fix

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable ".[dev]"
	touch $@

install: $(VENV)/installed

quickstart: $(VENV)/installed
	$(BIN)/simcse-train --config configs/quickstart.yaml

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes of one thread: the tests' encoders are too small for more threads, and waiting for one is slow on a busy
# machine. The tests of a file share what they make, so a file stays in one process.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

fix: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
