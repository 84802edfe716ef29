# One door for people, hooks and CI alike. `make help` lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL_REPO ?= model_repo
EXTRA ?= $(shell if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi)
ARGS ?=
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; break; fi; done)

SERVE := .venv/.installed-$(EXTRA)
DEV := .venv-dev/.installed
RECIPES := .venv-recipes/.installed
BIN := .venv-dev/bin

# A virtual environment from a hashed lock file, with this package in it: $(call install,FOLDER,LOCK)
define install
	@if [ -z "$(PYTHON)" ]; then echo "Fovea needs Python 3.11 or newer on the PATH (or PYTHON=...)" >&2; exit 1; fi
	rm -rf $(1)
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(2)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE)  ## Serve MODEL_REPO on HOST:PORT (EXTRA=cpu|gpu, ARGS=... passed on)
	@exec .venv/bin/fovea serve --model-repo $(MODEL_REPO) --server.host $(HOST) --server.port $(PORT) $(ARGS)

test: check  ## Run every check and the whole default test suite
	$(BIN)/python -m pytest $(ARGS)

check: $(DEV)  ## Lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(DEV)  ## Rewrite the code as ruff likes it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## Ceiling, served and their ratio, measured in one run (ARGS=--help for its options)
	$(BIN)/python loadtests/bench.py $(ARGS)

accuracy: $(DEV)  ## The test sets of digits and fashion through HTTP, against their model cards
	$(BIN)/python loadtests/accuracy.py $(ARGS)

recipe: $(RECIPES)  ## Make a model of the repository again: NAME=imagenet|digits|fashion
	.venv-recipes/bin/python model_repo/recipes/$(NAME).py $(ARGS)

lock: $(DEV)  ## Resolve the dependencies again into requirements/*.txt
	$(BIN)/python -m pip install --quiet uv
	for extra in cpu gpu; do $(BIN)/uv pip compile pyproject.toml --extra $$extra --group build --universal \
		--generate-hashes --no-header --quiet --upgrade -o requirements/$$extra.txt; done
	$(BIN)/uv pip compile pyproject.toml --extra cpu --group dev --universal \
		--generate-hashes --no-header --quiet --upgrade -o requirements/dev.txt

shape: $(DEV)  ## The longest functions and the largest files: to look at
	$(BIN)/python tests/support/shape.py

clean:  ## Remove the virtual environments and what tools left behind
	rm -rf .venv .venv-dev .venv-recipes .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

.venv/.installed-%: requirements/%.txt pyproject.toml
	$(call install,.venv,$<)
	@touch $@

$(DEV): requirements/dev.txt pyproject.toml
	$(call install,.venv-dev,$<)
	@touch $@

$(RECIPES): model_repo/recipes/requirements.txt
	rm -rf .venv-recipes
	$(PYTHON) -m venv .venv-recipes
	.venv-recipes/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.PHONY: help serve test check format bench accuracy recipe lock shape clean
