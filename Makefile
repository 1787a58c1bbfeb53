# Every target makes .venv by itself. It is complete only when its stamp exists, whose name carries the hash of the two
# requirement files: change one and the next target installs what is missing; an interrupted install starts afresh.
#
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#
# is what you want on Linux without a GPU: PyPI's torch brings 3 GB of CUDA packages, the CPU build none.

SHELL := /bin/sh
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
PIP_ARGS ?=
ARGS ?=

HASH := $(shell cat pyproject.toml constraints.txt | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c 1-16)
STAMP := .venv/.stamp-$(HASH)
BIN := .venv/bin

# No byte code beside the sources: the tree stays as it was cloned.
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help venv demo test test-slow browser check docs wheel figures toyworld-train toyworld-card clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 18

demo: $(STAMP) ## run the main job on the toy world, offline, and draw its charts
	VKVDB_HOME="$${VKVDB_HOME:-$$PWD/.vkvdb}" $(BIN)/vkvdb demo $(ARGS)

# A file's tests stay in one process: what its fixtures load (models, wheels) is loaded once.
test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

browser: $(STAMP) ## open the report and MLflow in a real Chromium (package chromium); after make demo
	VKVDB_HOME="$${VKVDB_HOME:-$$PWD/.vkvdb}" $(BIN)/python tests/browser.py $(ARGS)

check: $(STAMP) ## lint, format, types, layers and doors, generated documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m vkvdb_cli.docs --check

docs: $(STAMP) ## renew the generated parts of README.md
	$(BIN)/python -m vkvdb_cli.docs --write

wheel: $(STAMP) ## build the sdist and, from it, the wheel, into dist
	$(BIN)/python -m build --no-isolation

figures: $(STAMP) ## the demo at full size, for README and model card; resumes
	VKVDB_HOME="$${VKVDB_HOME:-$$PWD/.vkvdb}" $(BIN)/vkvdb demo --full $(ARGS)

toyworld-train: $(STAMP) ## train the toy model that ships; resumes
	$(BIN)/python -m vkvdb.toyworld.train $(ARGS)

toyworld-card: $(STAMP) ## measure the toy model anew and write its model card
	$(BIN)/python -m vkvdb_cli.card $(ARGS)

venv: $(STAMP) ## only make .venv

# No stamp at all means an interrupted install, of which nothing can be trusted; an older stamp means a complete one.
# pip's downloads stay in the build folder until all is installed, so that an interrupted install goes on without loss.
$(STAMP): export PIP_CACHE_DIR := $(or $(PIP_CACHE_DIR),$(CURDIR)/build/pip-cache)
$(STAMP):
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "vkvdb needs Python 3.11 or newer; none found: install python3.11, or say make PYTHON=/path/to/python" >&2; exit 1; }
	ls .venv/.stamp-* >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	rm -f .venv/.stamp-*
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]" $(PIP_ARGS)
	rm -rf build/pip-cache
	@touch $@

clean: ## remove what was built, .venv too; homes stay
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
