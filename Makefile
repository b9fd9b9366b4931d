# `make demo` and `make test` are all a stranger needs; both start from nothing but Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
SOURCES := CMakeLists.txt setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
ABI_TORCH ?= 2.13.0
# Whole operator tests, but for those that need torchvision; RoIAlign and RoIPool run in the house test.
ABI_TESTS := tests/test_conv.py $(wildcard tests/test_conv_*.py tests/test_max_*.py) tests/test_flush_subnormals.py \
  tests/test_permutohedral.py tests/nn/test_crf.py tests/house/test_threads.py

.PHONY: demo test bench lint typecheck unit abi wheel clean

demo: $(VENV)/.built
	$(BIN)/python -m atrousops.demo --output out/demo.png

test: $(VENV)/.built $(VENV)/.tested
	$(MAKE) lint typecheck
	$(BIN)/python -m pytest -q

# A selection of every suite in at most five minutes; the table, and a file of results with plots in out/bench.
bench: $(VENV)/.built
	$(PIP) --no-build-isolation -e ".[bench]"
	$(BIN)/python -m atrousops bench --quick --device cpu

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

typecheck: $(VENV)/.tested
	$(BIN)/mypy atrousops

# The libraries built against the torch of constraints.txt, unchanged, under another torch.
abi: $(VENV)/.built
	test -d $(VENV)-abi || $(PYTHON) -m venv $(VENV)-abi
	$(VENV)-abi/bin/python -m pip install --quiet "torch==$(ABI_TORCH)" numpy pytest hypothesis expecttest
	$(VENV)-abi/bin/python -c "import torch; print('operator tests under torch', torch.__version__)"
	$(VENV)-abi/bin/python -m pytest -q $(ABI_TESTS)

wheel: $(VENV)/.built
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .

clean:
	rm -rf build dist atrousops/lib atrousops/_C*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.built: $(VENV)/bin/python $(SOURCES)
	$(PIP) torch torchvision "setuptools>=77" wheel pybind11 ninja cmake
	$(PIP) --no-build-isolation -e ".[demo]"
	touch $@

$(VENV)/.tested: $(VENV)/.built
	$(PIP) --no-build-isolation -e ".[demo,test]"
	touch $@
