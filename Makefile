# The habits of this project. Every target sets itself up: python3 >= 3.11 and make are all it takes.

PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
BENCH_FLAGS ?=
# Relative: the path of the checkout may contain spaces.
BIN := $(VENV)/bin
STAMP := $(shell date +%Y%m%d-%H%M%S)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Some containers set it: each of several hundred starts would compile this project's modules again, 0.3 s.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format docs bench faults clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1: /p' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed  ## from text to a model that writes, in minutes: tokenizer, blocks, pretraining, samples, report
	@PYTHON=$(BIN)/python RUN=runs/quickstart-$(STAMP) sh recipes/quickstart/run.sh

test: $(VENV)/.installed-dev  ## run the test suite; the longest tests are left to make faults
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not long"

lint: $(VENV)/.installed-dev  ## format, lint, complexity, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-docs  ## write the documentation as a site into build/docs; a broken link is an error
	$(BIN)/python -m docs.generate_reference --check
	$(BIN)/python -m sphinx -W --keep-going -q -j auto -c docs . build/docs

bench: $(BENCH_VENV)/.installed  ## compare preprocess.py with its peers; BENCH_FLAGS="--data_files ... --tokenizer ..."
	$(BENCH_VENV)/bin/python -m benchmarks.preprocess $(BENCH_FLAGS)

faults: $(VENV)/.installed-dev blocks/quickstart  ## kill runs and break what they write, more than 100 times and in every way; an hour or more
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m pytest -n auto --dist loadfile -m long tests --ignore=tests/faults --ignore=tests/adversarial

blocks/quickstart: $(VENV)/.installed
	PYTHON=$(BIN)/python sh recipes/quickstart/data.sh

clean:  ## remove the environment and the tools' caches; blocks and runs stay
	rm -rf $(VENV) $(BENCH_VENV) .mypy_cache .ruff_cache .pytest_cache

# torch comes first: DeepSpeed's own build looks for it.
$(VENV)/.installed: requirements.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "PYTHON=$(PYTHON): needs Python 3.11 or newer; give another with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock setuptools wheel torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock --no-build-isolation -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock --no-build-isolation -r requirements-dev.txt
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock -r requirements-docs.txt
	@touch $@

# The peers lie in an environment of their own, above the project's, so that all arms share one version of each library.
$(BENCH_VENV)/.installed: $(VENV)/.installed benchmarks/requirements.txt
	$(BIN)/python -m venv $(BENCH_VENV)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(BENCH_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(BENCH_VENV)/bin/python -m pip install -q --disable-pip-version-check -c requirements.lock -r benchmarks/requirements.txt
	@touch $@
