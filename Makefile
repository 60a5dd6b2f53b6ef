# `make run` and `make test` do everything on a fresh Debian or Ubuntu machine with Python 3.11 or
# newer; the second time they only look at their stamps.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help run test check e2e format

PORT ?= 8501
WORKERS ?= 1
DEVICE ?= auto
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
PATHS := app assets benchmarks docs pages qpruner_core tests

help:  ## say what there is
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.stamp-run  ## start the app on 127.0.0.1:$(PORT) and WORKERS=1 on DEVICE=auto
	@exec $(BIN)/python -m app.launch --port $(PORT) --workers $(WORKERS) --device $(DEVICE)

test: check $(VENV)/.stamp-chromium  ## checks, then every test
	$(BIN)/python -m pytest

check: $(VENV)/.stamp-dev  ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell $(PATHS) README.md CHANGELOG.md

e2e: $(VENV)/.stamp-dev $(VENV)/.stamp-chromium  ## the tests in a browser and with real workers
	$(BIN)/python -m pytest -m "e2e or slow"

format: $(VENV)/.stamp-dev  ## put every file into the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment. Each stamp is younger than the files that say what has to be installed.

$(BIN)/python:
	@have() { command -v "$$1" >/dev/null; }
	as_root() { if [ "$$(id -u)" = 0 ] && have apt-get; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$@"; else return 1; fi; }
	is_new_enough() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
	found=
	for python in "$${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
	  if is_new_enough "$$python"; then found="$$python"; break; fi
	done
	if [ -z "$$found" ]; then
	  echo "Found no Python 3.11 or newer ($$(python3 --version 2>&1 || true)); install one, as with 'apt install python3 python3-venv' on Debian 12 or Ubuntu 24.04, and try again." >&2
	  exit 2
	fi
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null && ! as_root python3-venv; then
	  echo "$$found cannot make environments, as its venv module is missing; run 'apt install python3-venv' as root and try again." >&2
	  exit 2
	fi
	if ! "$$found" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null && ! as_root libgomp1; then
	  echo "The library libgomp.so.1 was not found, which quantisation needs; run 'apt install libgomp1' as root and try again." >&2
	  exit 2
	fi
	"$$found" -m venv $(VENV)

$(VENV)/.stamp-run: requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing what requirements.txt names into $(VENV); the first time takes some minutes."
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -e .
	touch $@

$(VENV)/.stamp-dev: requirements-dev.txt $(VENV)/.stamp-run
	@$(PIP) -r requirements-dev.txt
	touch $@

# A Chromium for the browser tests: the system's, or Debian's as root, or Playwright's own.
$(VENV)/.stamp-chromium: $(VENV)/.stamp-dev
	@have() { command -v "$$1" >/dev/null; }
	if have chromium; then
	  :
	elif [ "$$(id -u)" = 0 ] && have apt-get && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; then
	  :
	elif [ "$$(id -u)" = 0 ]; then
	  $(BIN)/playwright install --with-deps chromium
	else
	  $(BIN)/playwright install chromium
	fi
	touch $@
