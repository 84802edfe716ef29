# One door for people, hooks and CI alike. `make help` lists the targets.

SHELL := /bin/sh
.DEFAULT_GOAL := help

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL_REPO ?= model_repo
EXTRA ?= $(shell if [ -e /proc/driver/nvidia/version ] || command -v nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi)
ARGS ?=
SCENARIO ?= steady
REQUESTS ?= 20000
TARGET ?= cpu
BUILD ?= docker build
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then echo $$p; break; fi; done)

SERVE := .venv/.installed-$(EXTRA)
DEV := .venv-dev/.installed
LOAD := .venv-load/.installed
REAL := .venv-real/.installed
PAGE := .venv-page/.installed
CHECKOV := .venv-checkov/.installed
QUANTIZE := .venv-quantize/.installed
IMPORT := .venv-import/.installed
BIN := .venv-dev/bin
COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --no-header --quiet $(UPGRADE)
UPGRADE ?= --upgrade
LOCKED = .venv-import/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes

# A virtual environment from hashed lock files, with this package in it: $(call install,FOLDER,LOCKS)
define install
	@if [ -z "$(PYTHON)" ]; then echo "Fovea needs Python 3.11 to 3.14 on the PATH (or PYTHON=...)" >&2; exit 1; fi
	rm -rf $(1)
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes $(addprefix -r ,$(2))
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(SERVE)  ## Serve MODEL_REPO on HOST:PORT (EXTRA=cpu|gpu, ARGS=... passed on)
	@exec .venv/bin/fovea serve --model-repo $(MODEL_REPO) --server.host $(HOST) --server.port $(PORT) $(ARGS)

test: check  ## Run every check and the whole default test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-abuse: $(DEV)  ## The whole abuse matrix, case by case, with its table
	$(BIN)/python -m pytest -m '' --abuse-report tests/abuse $(ARGS)

test-faults: $(DEV)  ## Slow, gone, stopped and starved: each figure beside its bound (installs Debian packages: root once)
	tests/support/debian-packages.sh tests/fault/debian-packages.txt
	$(BIN)/python -m pytest -m '' -p no:randomly tests/fault $(ARGS)

test-corpora: $(DEV)  ## The odd and broken files of 15 image libraries and an HTTP fuzzer (fetches Debian sources: 250 MB)
	tests/corpora/fetch.sh build/corpora
	$(BIN)/python -m pytest -s -p no:randomly --timeout 900 tests/corpora $(ARGS)

soak: $(DEV)  ## 20,000 mixed requests, then: has anything grown? And a leak on purpose, which must be seen (REQUESTS=1000000)
	$(BIN)/python -m tests.abuse.soak --requests $(REQUESTS) $(ARGS)

check: $(DEV)  ## Lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(DEV)  ## Rewrite the code as ruff likes it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(LOAD)  ## Ceiling, served and their ratio, measured in one run (ARGS=--help for its options)
	.venv-load/bin/python loadtests/bench.py $(ARGS)

together: $(LOAD)  ## What models on one machine notice of each other: rates, latencies, phone photographs among others
	.venv-load/bin/python loadtests/together.py $(ARGS)

accelerator: $(LOAD)  ## What a GPU makes of encoded photographs: alone, with decoding, served; agreement with the CPU
	.venv-load/bin/python loadtests/accelerator.py $(ARGS)

tensors: $(DEV)  ## Binary and JSON tensors through /v2 against the same batch in-process
	$(BIN)/python loadtests/tensors.py $(ARGS)

load: $(LOAD)  ## One load scenario, its SLO as exit code: SCENARIO=steady|ramp|spike|soak|mixed|open_loop|v2_binary
	.venv-load/bin/python loadtests/load.py $(SCENARIO) $(ARGS)

slo: $(LOAD)  ## The highest rate that keeps p99 under a bound, and the curve
	.venv-load/bin/python loadtests/slo.py $(ARGS)

rollouts: $(DEV)  ## Versions under load: ARGS="flips bad shadow canary drift poison", or all
	$(BIN)/python loadtests/rollouts.py $(ARGS)

accuracy: $(DEV)  ## The test sets of digits and fashion through HTTP, against their model cards
	$(BIN)/python loadtests/accuracy.py $(ARGS)

import: $(IMPORT)  ## Make a model of the repository from an ONNX, Keras or PyTorch file: SOURCE=... NAME=... ARGS=...
	@exec .venv-import/bin/fovea import "$(SOURCE)" --name "$(NAME)" --model-repo $(MODEL_REPO) $(ARGS)

recipe: $(IMPORT)  ## Make a model by its recipe: NAME=imagenet|imagenet_int8|digits|fashion|tutorial|transfer (ARGS=--help)
	.venv-import/bin/python model_repo/recipes/$(NAME).py $(ARGS)

test-import: $(IMPORT)  ## Keras, PyTorch and the tutorials' networks through import, serve and classify (minutes)
	PYTHONPATH=model_repo/recipes .venv-import/bin/python -m pytest -W default --timeout 900 tests/importing $(ARGS)

quantize: $(QUANTIZE)  ## fovea quantize, with the tools it needs: ARGS="MODEL --images DIR"
	.venv-quantize/bin/fovea quantize $(ARGS)

compare: $(DEV)  ## Two models side by side through HTTP: ARGS="imagenet imagenet-int8"
	$(BIN)/python loadtests/compare.py $(ARGS)

image:  ## Build the container image (TARGET=cpu|gpu|demo, BUILD=docker's or buildah's build command)
	$(BUILD) --target $(TARGET) --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) -t fovea:$(TARGET) .

test-real: $(DEV) $(REAL) $(LOAD) $(CHECKOV)  ## The real thing: image, replicas, Prometheus, load (installs Debian packages; root)
	tests/real/install.sh
	PATH="$$PATH:$(CURDIR)/.venv-checkov/bin" .venv-real/bin/python -m pytest -p no:randomly --timeout 900 tests/real $(ARGS)

test-page: $(PAGE)  ## The page at / in Debian's Chromium, its pictures in build/page (installs Debian packages: root once)
	tests/support/debian-packages.sh tests/page/debian-packages.txt
	.venv-page/bin/python -m pytest tests/page $(ARGS)

sbom: $(SERVE) $(REAL)  ## CycloneDX bill of materials of the serving environment: build/sbom.cdx.json
	mkdir -p build
	.venv-real/bin/cyclonedx-py environment --pyproject pyproject.toml --validate --output-reproducible --of JSON \
		-o build/sbom.cdx.json .venv/bin/python

dashboard: $(REAL)  ## Write the Grafana dashboard and the PrometheusRule again from their sources
	.venv-real/bin/python deploy/monitoring/dashboard.py
	.venv-real/bin/python deploy/kubernetes/prometheusrule.py

lock: $(DEV)  ## Resolve the dependencies again into requirements/*.txt
	$(BIN)/python -m pip install --quiet uv
	for extra in cpu gpu; do $(COMPILE) --extra $$extra --extra tracing --group build -o requirements/$$extra.txt; done
	$(COMPILE) --extra cpu --extra quantize --group build -o requirements/quantize.txt
	echo opencv-python-headless | $(COMPILE:pyproject.toml=-) --no-deps -o requirements/opencv.txt
	$(COMPILE) --extra cpu --extra opencv --extra tracing --group dev -o requirements/dev.txt
	$(COMPILE) loadtests/requirements.in --extra cpu --group build -o requirements/load.txt
	mkdir -p build
	$(COMPILE) model_repo/recipes/requirements.txt --extra cpu --extra opencv --extra import --group build --group import-tests -o build/import.txt
	awk '/^[^ ]/ {torch = /^(cuda|nvidia|torch|triton)/} {print > ("requirements/" (torch ? "torch" : "import") ".txt")}' build/import.txt
	echo 'checkov>=3.2' | $(BIN)/uv pip compile - --universal --generate-hashes --no-header --quiet $(UPGRADE) -o requirements/checkov.txt
	$(COMPILE) tests/real/requirements.in --extra cpu --extra opencv --extra tracing --group dev -o requirements/real.txt
	$(COMPILE) tests/page/requirements.in --extra cpu --group dev -o requirements/page.txt

shape: $(DEV)  ## The longest functions and the largest files: to look at
	$(BIN)/python tests/support/shape.py

clean:  ## Remove the virtual environments and what tools left behind
	rm -rf .venv .venv-dev .venv-checkov .venv-load .venv-page .venv-quantize .venv-real .venv-import .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

.venv/.installed-%: requirements/%.txt requirements/opencv.txt pyproject.toml
	$(call install,.venv,$(filter %.txt,$^))
	@touch $@

$(DEV): requirements/dev.txt pyproject.toml
	$(call install,.venv-dev,$<)
	@touch $@

$(LOAD): requirements/load.txt pyproject.toml
	$(call install,.venv-load,$<)
	@touch $@

$(REAL): requirements/real.txt pyproject.toml
	$(call install,.venv-real,$<)
	@touch $@

$(PAGE): requirements/page.txt pyproject.toml
	$(call install,.venv-page,$<)
	@touch $@

# Of its own, as it wants older versions of what pytest needs newer.
$(CHECKOV): requirements/checkov.txt
	rm -rf .venv-checkov
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(QUANTIZE): requirements/quantize.txt pyproject.toml
	$(call install,.venv-quantize,$<)
	@touch $@

# PyTorch's build for CPUs where an index or a folder of wheels has it; else PyPI's, with 2 GB of CUDA's libraries on Linux.
$(IMPORT): requirements/import.txt requirements/torch-cpu.txt requirements/torch.txt pyproject.toml
	rm -rf .venv-import
	$(PYTHON) -m venv .venv-import
	$(LOCKED) -r requirements/import.txt
	$(LOCKED) -r requirements/torch-cpu.txt 2>/dev/null || $(LOCKED) -r requirements/torch.txt
	.venv-import/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: accelerator help serve test test-abuse test-faults soak check format bench tensors load slo accuracy image test-real test-page test-corpora sbom dashboard recipe lock shape clean compare quantize import test-import rollouts
