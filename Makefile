# `make demo` and `make test` work on a fresh clone: they make .venv, install what is pinned and build the library.
# An environment that is already there is used instead with VENV=/path/to/it or PYTHON=/path/to/its/python.

BASE_PYTHON ?= python3
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
STAMP := build/.installed$(subst /,-,$(PYTHON))
PYTEST_ARGS ?=  # for `make test` and `make test-kernels`: -n 2 shares the tests out among two processes
CPP := '*.h' '*.cpp' '*.cu' '*.cuh'
SOURCES := setup.py pyproject.toml requirements-dev.txt requirements-models.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

.PHONY: demo test-kernels test test-slow bench bench-models bench-gpu check-gpu check format sanitize wheel test-torch-versions cuda-report clean

demo: $(STAMP)
	$(PYTHON) -m examples.tutorial

test: $(STAMP)
	$(PYTHON) -m pytest $(PYTEST_ARGS)

test-kernels: $(STAMP)  ## what reaches the CPU kernels; FILM_KERNELS_CPU_ISA chooses the instruction set
	$(PYTHON) -m pytest -q $(PYTEST_ARGS) -k "cpu or winograd" tests/test_backends.py tests/test_winograd.py tests/test_errors.py tests/test_special_values.py tests/test_memory.py tests/norm_film/test_backends.py tests/norm_film/test_numerics.py

test-slow: $(STAMP)
	$(PYTHON) -m pytest --slow -m slow

# The performance suite (bench/): forward, training and memory, side by side with what a user would pick instead.
# OUT, BUDGET_S and DRY=1 are explained in bench/__main__.py.
bench: $(STAMP)
	$(PYTHON) -m bench cpu

# Whole models of packages, in every way and beside onnxruntime and OpenVINO: an hour of two cores. MODELS_ARGS chooses a
# part of it (bench/models.py).
bench-models: $(STAMP)
	$(PYTHON) -m pip install -q --no-deps -r bench/requirements-models.txt
	$(PYTHON) -m bench.models $(MODELS_ARGS)

bench-gpu: $(STAMP)
	$(PYTHON) -m bench gpu

# The one command for a machine with a GPU: build, whole test suite, benchmarks. It installs nothing, for such a machine
# may have no network: what is there is used, from the environment or else from python3.
check-gpu:
	$(or $(shell command -v $(PYTHON)),$(BASE_PYTHON)) -m bench check-gpu

check: $(STAMP)  ## format, lint and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy film_kernels bench
	git ls-files $(CPP) | xargs $(dir $(PYTHON))clang-format --dry-run --Werror

format: $(STAMP)
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	git ls-files $(CPP) | xargs $(dir $(PYTHON))clang-format -i

# The kernels built with AddressSanitizer and UBSan, and the tests that reach them. Python itself is not built so: its
# leaks are not looked for, and the sanitizers' libraries are loaded before it.
sanitize: $(STAMP)
	FILM_KERNELS_SANITIZE=address,undefined $(PYTHON) setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize-temp
	PYTHON=$(PYTHON) .ci/sanitized-tests

# The wheel, installed away from the checkout, passes the quick tests (.ci/quick-tests).
wheel: $(STAMP)
	PYTHON=$(PYTHON) .ci/wheel-tests

# Oldest and newest PyTorch, each with the library of this environment and with one built there. Not a part of CI: it
# fetches gigabytes, and takes about an hour of two cores.
test-torch-versions: $(STAMP)
	PYTHON=$(PYTHON) BASE_PYTHON=$(BASE_PYTHON) .ci/torch-versions

cuda-report: $(STAMP)  ## every CUDA kernel for every architecture: registers, spills, instructions; no GPU needed
	$(PYTHON) csrc/cuda/report.py

clean:
	rm -rf build dist *.egg-info film_kernels/*.so

$(STAMP): $(SOURCES)
	test -x $(PYTHON) || $(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install -q -r requirements-dev.txt
	$(PYTHON) -m pip install -q --no-deps -r requirements-models.txt
	$(PYTHON) -m pip install -q --no-build-isolation -e .
	@mkdir -p $(@D) && touch $@
