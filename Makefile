.PHONY: help setup dev demo up test check audit servers test-gpu gpu-hour bench chaos guards soak
BIN := .venv/bin
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

help:  ## what `make` can do
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

setup: .venv/.stamp  ## virtual environment with all that runs, once
.venv/.stamp: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh

dev: .venv/.dev-stamp  ## that, and the tools for working on it, once
.venv/.dev-stamp: pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh dev

demo: setup  ## the main job, from nothing to the best trial
	@$(BIN)/python scripts/demo.py

up: setup  ## API, dashboard and workers until Ctrl-C
	@$(BIN)/tuner up

check: dev  ## format, lint, types, layers, known vulnerabilities
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary && $(BIN)/lint-imports > .venv/lint-imports.log || { cat .venv/lint-imports.log; false; }
	@$(BIN)/python scripts/audit.py .venv

audit: dev  ## known vulnerabilities, or no answer about them, as an error
	@$(BIN)/python scripts/audit.py --strict .venv

servers:  ## redis-server, postgresql and chromium for the tests, where missing
	@scripts/install-servers.sh

test: dev servers check  ## everything that needs no GPU
	@$(ONE_THREAD) $(BIN)/pytest -q -m "not gpu" -n auto --maxprocesses 4 --dist loadfile
	@$(ONE_THREAD) $(BIN)/python -m tests.fake_gpu

test-gpu: dev  ## what needs a CUDA device
	@$(BIN)/pytest -q -m gpu

gpu-hour: dev  ## the first hour on a GPU: tests, checks, benchmarks, a table
	@$(BIN)/python -m benchmarks.gpu_hour

bench: dev  ## the quick benchmarks: name, measured, goal
	@$(ONE_THREAD) $(BIN)/python -m benchmarks.run

chaos: dev servers  ## thousands of generated requests, then the long fault run
	@$(ONE_THREAD) TUNER_CONTRACT_EXAMPLES=40 $(BIN)/pytest -q tests/integration/api/test_contract.py
	@$(ONE_THREAD) $(BIN)/python -m tests.chaos

guards: dev servers  ## every guard of the invariants taken out once: is it missed?
	@$(ONE_THREAD) $(BIN)/python -m tests.guards

soak: dev  ## an hour of ordinary work: is anything growing?
	@$(ONE_THREAD) $(BIN)/python -m tests.chaos.soak
