# GNU make, bash and Python 3.10, 3.11 or 3.12 are needed; everything else goes into .venv.
#
#   make demo    set up, and turn examples/me.mp4 + examples/dance.mp4 into out.mp4 (CPU, a few minutes)
#   make test    set up, and run the quick tests
#   make check   lint, types, all tests but the longest: what CI runs
#   make bench   measure speed and memory
#   make reliability  the tests of what goes wrong, and docs/reliability.md, the table of what they proved
#   make fuzz    FUZZ=200 broken files of every kind, from SEED=1 on, through the command line
#
# PYTHON=… chooses the interpreter; STEPS=… the fine-tuning steps of the demo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup dev demo test check bench reliability fuzz
.DELETE_ON_ERROR:

BIN := .venv/bin
STEPS ?= 40
FUZZ ?= 200
# Tests side by side: they start few large computations and many small ones.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
SEED ?= 1

help:
	@sed -n 's/^#   //p' Makefile

setup: .venv/.setup
dev: .venv/.dev

.venv/bin/pip:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.10 python3 python); do \
		if "$$python" -c 'import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' \
			>/dev/null 2>&1; then \
			echo "Setting up .venv with $$("$$python" --version) …"; \
			exec "$$python" -m venv --clear .venv; \
		fi; \
	done; \
	echo 'retarget needs Python 3.10, 3.11 or 3.12 with its venv module, and none was found. Install one' \
		'(Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11' >&2; \
	exit 1

.venv/.setup: pyproject.toml | .venv/bin/pip
	@echo 'Installing (torch and mediapipe take a while) …'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/.dev: .venv/.setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/.setup
	$(BIN)/retarget personalize examples/me.mp4 --frames 5 --steps $(STEPS) --name demo
	$(BIN)/retarget drive --avatar demo --source examples/dance.mp4 --out out.mp4 --yes
	@echo "The person of examples/me.mp4 dances as in examples/dance.mp4: $(CURDIR)/out.mp4"

test: .venv/.dev
	$(PYTEST) -m 'not slow'

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m 'not long'

bench: .venv/.setup
	$(BIN)/python benchmarks/bench.py

reliability: .venv/.dev
	$(BIN)/python -m pytest -m reliability --reliability-report=docs/reliability.md

fuzz: .venv/.dev
	$(BIN)/python tests/reliability/fuzz.py --count $(FUZZ) --seed $(SEED)
