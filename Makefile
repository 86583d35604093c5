# make demo    see five synthetic merchants train together; installs what that needs
# make test    every test: units, doctests, then real processes; prints what was skipped, and why
# make lint    style, formatting, types, and which room may import which
# make unit    what a change is tried with, in some minutes: units and doctests, no processes, no public data
# make system  the tests that start real processes
# make bench   every benchmark, each with its table and its mark
#
# The first one to be run makes .venv and installs into it. Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
# Where the public data sets are. Tests that read them are skipped where there is no such folder.
HANSA_DATA ?= $(CURDIR)/../shared/data
export HANSA_DATA

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
# Two files at a time. What starts real processes mostly waits for them: there the longest files come first.
IN_PARALLEL := $(BIN)/python -m pytest -n 2 --dist loadfile
PROCESSES := $(IN_PARALLEL) --no-loadscope-reorder -m system
BENCHES := $(sort $(wildcard tests/bench/bench_*.py))

.NOTPARALLEL:
.PHONY: demo test lint unit system bench

demo: $(INSTALLED)
	$(BIN)/hansa demo

test: $(INSTALLED_DEV)
	$(IN_PARALLEL) -m "not system"
	$(PROCESSES)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(INSTALLED_DEV)
	$(IN_PARALLEL) -m "not system and not data"

system: $(INSTALLED_DEV)
	$(PROCESSES)

bench: $(INSTALLED_DEV)
	@test -n "$(BENCHES)" || { echo "there are no benchmarks in tests/bench"; exit 1; }
	@missed=; for bench in $(BENCHES); do \
	  echo "== $$bench"; \
	  $(BIN)/python $$bench || missed="$$missed $$bench"; \
	done; \
	test -z "$$missed" || { echo "missed or failed:$$missed"; exit 1; }

# The stamps stand in the environment itself: whoever removes it removes them.
$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $(INSTALLED) $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "there is no $(PYTHON) here; install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=python3.12 demo"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Hansa runs on Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12 demo"; \
	  exit 1; }
	@# Half an environment would look like a whole one to the next make.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
