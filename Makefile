# What a developer runs, one word each. `make setup` once; everything else uses the environment it makes.

PYTHON ?= python3
BIN := .venv/bin

# Where there is no environment of ours, as on a machine lent for its GPU, any Python that has torch and Triton will do.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

OUT ?= gpu-results

.PHONY: help setup test coverage nightly lint format spelling types compiled pure imports proto buf bench gpu demo check

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## a virtual environment with everything that tests and pre-commit need
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e '.[dev]'

test: ## all tests, servers beside what needs none
	$(BIN)/pytest -n 2

coverage: ## which lines of the rooms that decide their quick tests reach
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/coverage

nightly: ## the tests that take long: all compiled forms of the kernels, all families, real weights
	$(BIN)/pytest -m nightly

lint: ## ruff: rules and format, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: ## ruff: repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

spelling: ## codespell
	$(BIN)/codespell

types: ## mypy, strict
	$(BIN)/mypy -p tokenmux -p benchmarks

compiled: ## the compiled form in the environment (docs/compiled.md); `make pure` goes back
	TOKENMUX_COMPILE=1 $(BIN)/pip install -e '.[dev]'

pure: ## the pure form again, after `make compiled`
	$(BIN)/pip install -e '.[dev]'

imports: ## the direction of imports
	PYTHONPATH=.typing $(BIN)/lint-imports --no-logo

proto: ## the Python code of proto/, written anew
	$(BIN)/python proto/generate.py

buf: ## buf's linter over proto/, and its check against the branch main
	.ci/buf

bench: ## every benchmark, one after another; results go into benchmarks/history.jsonl, and are compared with earlier ones
	@for file in $$(grep -l __main__ benchmarks/*.py | grep -v -e /gpu.py -e /compare.py -e /null_executor.py); do \
	  TOKENMUX_HISTORY=benchmarks/history.jsonl $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; \
	done
	$(BIN)/python -m benchmarks.compare

gpu: ## everything that only a GPU can tell, in eight minutes: results in the folder OUT, compiled kernels in CACHE if given
	PYTHONPATH=.typing $(GPU_PYTHON) -m benchmarks.gpu --out $(OUT) $(if $(CACHE),--cache $(CACHE))

demo: ## many models on one small virtual device
	$(BIN)/tokenmux demo

check: lint spelling types imports test ## what has to be green before a commit
