# `make demo` and `make test` work on a fresh clone: they make .venv, install what is pinned and build the library.
# An environment that is already there is used instead with VENV=/path/to/it or PYTHON=/path/to/its/python.

BASE_PYTHON ?= python3
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
STAMP := build/.installed$(subst /,-,$(PYTHON))
CPP := '*.h' '*.cpp' '*.cu' '*.cuh'
SOURCES := setup.py pyproject.toml requirements-dev.txt $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu*')

.PHONY: demo test-kernels test test-slow check format sanitize wheel cuda-report clean

demo: $(STAMP)
	$(PYTHON) -m examples.tutorial

test: $(STAMP)
	$(PYTHON) -m pytest

test-kernels: $(STAMP)  ## what reaches the CPU kernels; FILM_KERNELS_CPU_ISA chooses the instruction set
	$(PYTHON) -m pytest -q -k cpu tests/test_backends.py tests/test_special_values.py tests/test_memory.py

test-slow: $(STAMP)
	$(PYTHON) -m pytest --slow -m slow

check: $(STAMP)  ## format, lint and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy film_kernels
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

# The wheel, installed away from the checkout, passes the same tests.
wheel: $(STAMP)
	PYTHON=$(PYTHON) .ci/wheel-tests

cuda-report: $(STAMP)  ## every CUDA kernel for every architecture: registers, spills, instructions; no GPU needed
	$(PYTHON) csrc/cuda/report.py

clean:
	rm -rf build dist *.egg-info film_kernels/*.so

$(STAMP): $(SOURCES)
	test -x $(PYTHON) || $(BASE_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install -q -r requirements-dev.txt
	$(PYTHON) -m pip install -q --no-build-isolation -e .
	@mkdir -p $(@D) && touch $@
