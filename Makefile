# One command each for what is done often; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install system demo demo-apps test lint format bench clean distclean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo
ARGS ?=
# Benchmarks that make their own data; the others name what they need in their first lines.
BENCHMARKS := read_films train_throughput train_step memory_estimate explain_cost predict_throughput edge_table vit_vs_cnn \
  review_store zeroshot_throughput zeroshot_soak
# Debian packages that tests call where they can be had (as root, with apt); a test that misses its program is skipped.
SYSTEM_PACKAGES := chromium gdal-bin postgresql

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the tested versions of all packages (minutes the first time, then nothing)

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) is not there. Give another one: make install PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1). Give another one: make install PYTHON=python3.12" >&2; exit 2; }
	@echo "==> [1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "==> [2/3] packages at the versions of constraints.txt (about 6 GB with PyTorch; minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt setuptools
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-build-isolation \
	  --editable '.[apps,dev,lossless-jpeg,openvino,postgres,ray]'
	@echo "==> [3/3] check"
	@$(BIN)/python -m pip check
	@touch $(STAMP)

system:
	@missing=(); for package in $(SYSTEM_PACKAGES); do dpkg -s "$$package" >/dev/null 2>&1 || missing+=("$$package"); done; \
	if (( $${#missing[@]} )) && [[ $$(id -u) == 0 ]] && command -v apt-get >/dev/null; then \
	  echo "==> system packages: $${missing[*]}"; \
	  { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$${missing[@]}"; } >/dev/null \
	    || echo "They could not be had; the tests that need them are skipped."; \
	fi

demo: install ## train, calibrate, evaluate and explain on films drawn here; results in runs/demo
	@echo "==> demo: everything goes to $(RUN), the bundle to $(RUN)/bundle"
	@$(BIN)/python -m vitdomains.cxr train --run.dir $(RUN) --run.overwrite true

demo-apps: install ## start the three review apps with data made here (ARGS="--only cxr"); Ctrl-C stops them
	@$(BIN)/python -m apps.demo $(ARGS)

test: install system lint ## lint, then all tests
	@echo "==> tests"
	@$(BIN)/python -m pytest -m "slow or not slow"

lint: install ## style, types and the direction of imports
	@echo "==> ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "==> mypy"
	@$(BIN)/mypy
	@echo "==> import-linter"
	@$(BIN)/lint-imports --no-logo

format: install ## let ruff correct what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install ## run the benchmarks that need no data set, one after the other; best on an otherwise idle machine
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation \
	  --editable '.[bench]'
	@for name in $(BENCHMARKS); do echo "==> $$name"; $(BIN)/python "benchmarks/$$name.py"; done

clean: ## remove caches and build files; runs and .venv stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis ./*.egg-info
	@find vitdomains tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## the same, and .venv
	@rm -rf $(VENV)
