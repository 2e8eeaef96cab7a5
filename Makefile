# Every target makes the environment it needs: .venv with the pinned versions of constraints.txt and the extras of
# pyproject.toml that the target uses. A stamp per extra is renewed when either file changes.
PYTHON ?= python3
VENV   ?= .venv
CONSTRAINTS ?= constraints.txt
RUN    := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n 2 --dist loadfile
SHELL  := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-aot compile-tests lint docs results bench wheel-smoke clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 chooses the interpreter, VENV=path the environment."

demo: $(VENV)/.with-plots ## the headline of the length-generalization study on a CPU: a table and a figure in runs/demo
	$(RUN) -m experiments.length_generalization --config=configs/length_generalization.py:demo --workdir=runs/demo

test: $(VENV)/.with-test ## the suite of a CPU-only computer
	$(PYTEST) -m "not slow and not tpu and not gpu and not aot"

test-all: $(VENV)/.with-test $(VENV)/.with-torch $(VENV)/.with-notebooks ## the same with slow tests, notebooks and comparisons with PyTorch
	$(PYTEST) -m "not tpu and not gpu and not aot"

test-aot: ## kernels through the compilers for TPU and CUDA, with no chip there, in .venv-aot
	@$(MAKE) --no-print-directory VENV=.venv-aot compile-tests

compile-tests: $(VENV)/.with-aot $(VENV)/.with-test
	$(RUN) -m pytest -m aot

lint: $(VENV)/.with-dev ## ruff and pyright
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

docs: $(VENV)/.with-docs ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

results: $(VENV)/.with-plots ## tables and figures of committed results from their files, and the pages; trains nothing
	$(RUN) -m experiments.render_results

bench: $(VENV)/.with-plots ## our training step beside the peers that are installed, into runs/bench
	$(RUN) -m experiments.benchmark --suite=train_step --workdir=runs/bench

wheel-smoke: ## build wheel and sdist, install the wheel for PYTHON in a throw-away environment, and use it there
	$(PYTHON) tests/packaging/smoke.py --python=$(PYTHON) --constraint=$(CONSTRAINTS)

clean: ## remove caches and build outputs (not .venv, not runs)
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxlm needs Python 3.11 or newer, and $(PYTHON) is " \
	  + sys.version.split()[0] + "; say for example: make PYTHON=python3.12 demo")'
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.with-%: pyproject.toml constraints.txt | $(RUN)
	@echo "installing jaxlm[$*] into $(VENV); the first time this takes a minute or two:"
	@set -o pipefail; $(RUN) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e ".[$*]" \
	  | awk '/^ *Collecting/ {sub(/[^A-Za-z0-9_.-].*/, "", $$2); printf "%s ", $$2; fflush()} END {print "done."}'
	@touch $@
