# Every target prepares what it needs: on a machine with Python, pip, make and git, `make test` is the first command.
PYTHON ?= python3
VENV ?= .venv
VENV_LOWEST ?= .venv-lowest
JOBS ?= 2
CONSTRAINTS ?= constraints.txt
EXTRAS ?= test,lint,docs
BIN = $(VENV)/bin
PIP_FLAGS = --quiet --disable-pip-version-check
# mypy and import-linter see the package only in a strict editable install (a tree of links, made anew for new files).
EDITABLE = --no-build-isolation --config-settings editable_mode=strict --editable
DEMO = build/demo
MODELS = examples/models

.DEFAULT_GOAL := help
.PHONY: help demo docs test lint nightly fuzz test-lowest format relink lock clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.linked ## compile a real model with -O2 --target int8, print before and after, write the reports
	@mkdir -p $(DEMO)
	$(BIN)/memoptc $(MODELS)/digits_cnn.onnx -O2 --target int8 \
	  --calibration $(MODELS)/digits_calibration.npz --validation $(MODELS)/digits_validation.npz \
	  --verify full -o $(DEMO)/digits_cnn.int8.onnx --report $(DEMO)/report.html --report $(DEMO)/report.json

docs: $(VENV)/.linked ## build the documentation as a site, build/site
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site

test: $(VENV)/.linked ## run the tests (JOBS=2 at once; ARGS="tests/ir -k dims" for some of them)
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

lint: $(VENV)/.linked ## ruff, mypy --strict, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p memoptc
	$(BIN)/lint-imports

nightly: $(VENV)/.linked ## the long forms: every test, many more random cases, then test-lowest
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -n $(JOBS) -m "" $(ARGS)
	$(MAKE) test-lowest

N ?= 1000
MINUTES ?= 60
LOG ?= build/fuzz.jsonl

fuzz: $(VENV)/.linked ## try N random models in several ways each (N=10000 MINUTES=60); goes on where the log ends
	@$(BIN)/python tests/fuzz/long_run.py --count $(N) --minutes $(MINUTES) --log $(LOG) || failed=1; \
	  $(BIN)/python tests/fuzz/long_run.py --summary $(LOG); exit $$failed

test-lowest: ## run the tests with the oldest versions that pyproject.toml allows
	$(MAKE) test VENV=$(VENV_LOWEST) CONSTRAINTS=constraints-lowest.txt EXTRAS=test

format: $(VENV)/.linked ## let ruff sort imports and format
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

relink: ## show new files to the editable install (make test does it by itself)
	@test -x $(BIN)/python || $(MAKE) --no-print-directory $(VENV)/.linked
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(PIP_FLAGS) --no-deps $(EDITABLE) .

lock: ## resolve constraints.txt and constraints-lowest.txt anew
	sh .ci/lock $(PYTHON)

clean: ## remove what was built, the environments included
	rm -rf build dist *.egg-info $(VENV) $(VENV_LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "memoptc needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV) || { \
	  echo "no ensurepip (Debian keeps it in python3-venv): taking pip from $(PYTHON)"; \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(VENV)/bin/python install $(PIP_FLAGS) pip; \
	} || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install $(PIP_FLAGS) -c $(CONSTRAINTS) setuptools
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install $(PIP_FLAGS) -c $(CONSTRAINTS) $(EDITABLE) '.[$(EXTRAS)]'
	@touch $@

# Changes only when a file of the package appears or goes, as after `git pull`.
$(VENV)/.files: FORCE | $(VENV)/bin/python
	@find compiler ir runtime passes -name __pycache__ -prune -o -type f -print | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.linked: $(VENV)/.installed $(VENV)/.files
	@$(MAKE) --no-print-directory relink
	@touch $@
