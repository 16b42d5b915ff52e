# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the others.
# Another interpreter: `make test PYTHON=python3.12`. The small CPU build of torch, where pip would take the CUDA one:
# `make install TORCH_INDEX=` with the address of PyTorch's index of CPU wheels.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed$(if $(PYTHON),-$(notdir $(PYTHON)))
PIP_FLAGS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# Threads that wait for work would otherwise spin, and steal the core from the ones that have some.
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

# The tests' models are small: a second thread costs more than it brings, and sums keep one order.
one_thread := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help install demo test test-all lint types doctest bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(STAMP)  ## .venv with the package (editable) and its tools; made again when pyproject or constraints change

$(STAMP): pyproject.toml constraints.txt
	@set -eu; python=''; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'make: Python 3.11 or newer was not found; name one: make install PYTHON=/path/to/python3.12' >&2; exit 1; \
	fi; \
	version='import sys; print(*sys.version_info[:2])'; \
	if [ ! -x $(BIN)/python ]; then $$python -m venv $(VENV); \
	elif [ -n '$(PYTHON)' ] && [ "$$($$python -c "$$version")" != "$$($(BIN)/python -c "$$version")" ]; then \
		$$python -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## compare the methods on scikit-learn's digits; 1 to 3 minutes; runs/demo/report.html
	$(BIN)/latentfit compare digits --out runs/demo

test: lint types doctest  ## lint, types, doctests and the fast tests
	$(one_thread) $(BIN)/python -m pytest

test-all: lint types doctest  ## the same with the slow tests
	$(one_thread) $(BIN)/python -m pytest -m 'slow or not slow'

lint: install  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy
	$(BIN)/mypy

doctest: install  ## the examples in the docstrings
	$(one_thread) $(BIN)/python -m pytest --doctest-modules src

bench: install  ## all benchmarks but mnist.py, which trains for hours and resumes
	@set -e; for script in $(filter-out benchmarks/mnist.py benchmarks/_%,$(wildcard benchmarks/*.py)); do \
		echo "$$script"; $(one_thread) $(BIN)/python $$script; \
	done

clean:  ## remove all that make made, but for runs/
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
