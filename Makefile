# `make` lists the targets. Two are enough on a fresh machine: `make compare` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# Options for the command behind a target: make compare ARGS="--model roberta-base --data train.csv"
ARGS ?=

# Nothing is downloaded: the built-in model and data come with the packages. HF_HUB_OFFLINE=0 allows hub names.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

# One thread in each test process and one process a core: more threads than cores make small matrices slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help compare test test-all bench lint format docs notebooks site dist clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 18

compare: $(VENV)/installed  ## find the best method for the built-in model and data; ARGS= for your own
	@$(BIN)/deltatune compare $(ARGS)

test: $(VENV)/installed-dev  ## run the quick tests; ARGS="tests/testing/test_laws.py -k LoRA" for some
	@$(PYTEST) $(ARGS)

test-all: $(VENV)/installed-dev  ## run every test, the slow ones too
	@$(PYTEST) -m "slow or not slow" $(ARGS)

bench: $(VENV)/installed-dev  ## time steps, decoding, attaching and methods against HF PEFT and themselves; ARGS="--threads 1 --clock cpu"
	@for name in step qlora_step decode attach dora adapterdrop longlora probe lm_logits label_words optimizers; do $(BIN)/python -W ignore -m benchmarks.$$name $(ARGS) || exit 1; done

lint: $(VENV)/installed-dev  ## ruff and mypy --strict, changing nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/installed-dev  ## ruff's fixes and formatting, in place
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/installed-dev  ## write the tables and pages that are generated from the code
	@$(BIN)/python docs/tables.py
	@$(BIN)/python docs/families.py

notebooks: $(VENV)/installed-dev  ## run examples/notebooks/*.py in fresh kernels and write the .ipynb; ARGS=own_csv for one
	@$(BIN)/python docs/notebooks.py $(ARGS)

site: $(VENV)/installed-docs  ## build the documentation site into site/, from docs/ and the docstrings; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site
	@echo "Built site/. To read and search it: $(BIN)/python -m http.server -d site"

dist:  ## build the source distribution and the wheel into dist/, and check their metadata
	@$(PYTHON) -m venv --clear build/venv
	@build/venv/bin/python -m pip install -qq --disable-pip-version-check build twine
	@rm -rf dist
	@build/venv/bin/python -m build
	@build/venv/bin/python -m twine check --strict dist/*

clean:  ## remove caches and build outputs; .venv and runs stay
	@rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: made when missing, repaired when half made, left alone while these two files are unchanged ---

$(VENV)/installed: pyproject.toml constraints.txt
	$(call install,all$(comma)demo)
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	$(call install,dev)
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt
	$(call install,docs)
	@touch $@

comma := ,

define install
@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
		echo "deltatune needs Python 3.11, 3.12 or 3.13; '$(PYTHON) --version' says:" >&2; \
		$(PYTHON) --version 2>&1 | sed 's/^/    /' >&2; \
		echo "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -m venv --clear $(VENV); }
@echo "Installing deltatune[$(1)] into $(VENV), some minutes the first time ..."
@$(PIP) -e '.[$(1)]' || { echo "Installation failed; pip says why above. make tries again where it stopped." >&2; exit 1; }
endef
