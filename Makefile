# make train: from nothing to a network that reads characters from one example each.
# make test:  from nothing to a green run of the fast tests; make test-all: of all.
.DELETE_ON_ERROR:
.PHONY: train test test-slow test-long test-all coverage lint bench-peers clean help

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
WORKERS ?= 2

help:
	@echo "make train   install if needed, train on drawn characters, print accuracy and where the report lies"
	@echo "make test    install if needed, run the fast tests: every capability once"
	@echo "make test-all  run all tests: the fast ones, the slow ones, then the long ones"
	@echo "make coverage  run all tests, and print which share of the lines of src they run"
	@echo "make bench-peers  install each other library in an environment of its own and time all (an hour)"
	@echo "make lint    ruff and pyright, as pre-commit runs them"

train: $(STAMP)
	$(BIN)/imaml train characters-5w1s

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not long" tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "slow and not long" tests

test-long: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long tests

test-all: test test-slow test-long

coverage: $(DEV)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov=imaml --cov-report=term tests

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks run peers
	$(BIN)/python -m benchmarks render

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "imaml needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(DEV): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
