# `make demo` and `make test` are all a stranger needs; both start from nothing but Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
SOURCES := atrousops/dispatch/schemas.inc CMakeLists.txt setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
# The oldest that the libraries serve: the source is compiled against it, and tests run with it. Of the next one the
# source is compiled against the headers, for which its wheel of half a gigabyte is fetched.
ABI_TORCH ?= 2.10.0
SYNTAX_TORCH ?= $(ABI_TORCH) 2.11.0
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= 0
# nvcc takes minutes: unasked only where there is a GPU to run the kernels. `make cuda` or CUDA=ON asks.
CUDA ?= $(if $(shell command -v nvidia-smi),AUTO,OFF)
# Whole operator tests, but for those that need torchvision; RoIAlign and RoIPool run in the house test. Then a few of
# Triton's, with the Triton that this torch pins. ABI_ALL=1 has all of both, which takes a quarter of an hour and more.
ABI_TESTS = $(if $(ABI_ALL),$(TRITON_TESTS) tests/nn tests/house tests/triton_kernels,$(ABI_FEW))
ABI_FEW := tests/test_conv.py $(wildcard tests/test_conv_*.py tests/test_max_*.py) \
  tests/test_permutohedral.py tests/nn/test_crf.py tests/house/test_threads.py \
  tests/nn/test_crf_input.py::test_compiled_crfs_lose_that_pixel_alone
ABI_TRITON = $(if $(ABI_ALL),-n logical --dist worksteal $(TRITON_TESTS),-p few --few 3 $(ABI_FEW_TRITON))
ABI_FEW_TRITON := tests/test_conv_epilogue.py $(wildcard tests/test_max_*.py)

# Those that take a backend; under the interpreter, which is slow, a choice of their cases.
TRITON_TESTS := $(wildcard tests/test_*.py) tests/nn/test_crf.py tests/house/test_operators.py \
  tests/triton_kernels/test_derivatives.py

.PHONY: demo test docs bench cuda lint typecheck unit abi sanitized sanitize fuzz gpu-check ptx wheel clean
.PHONY: ray emulated emulated-gpu

demo: $(VENV)/.built
	$(BIN)/python -m atrousops.demo --output out/demo.png

test: $(VENV)/.built $(VENV)/.tested
	$(if $(shell command -v nvcc),$(MAKE) cuda)
	$(MAKE) lint typecheck
	$(BIN)/python -m pytest -q -n logical --dist worksteal --ignore tests/ptx --ignore tests/cluster
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n logical --dist worksteal -m triton $(TRITON_TESTS)

# The documentation as a site, notebooks and all; a warning is an error. -> build/site/index.html
docs: $(VENV)/.tested
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# The CUDA library beside the others; it needs nvcc and no GPU.
# `make emulated-gpu` takes its objects, and the PTX that nvcc made on the way.
CONFIGURE_CUDA = cmake -S . -B build/cuda -G Ninja -DATROUSOPS_CUDA=ON -DATROUSOPS_FAKE_CUDA=ON \
  -DPython3_EXECUTABLE="$(abspath $(BIN))/python"
KEEP_PTX = find build/cuda/fake_cuda/ptx -type f ! -name '*.ptx' -delete
cuda emulated: export PATH := $(abspath $(BIN)):$(PATH)
cuda: $(VENV)/.built
ifeq ($(CUDA),OFF)
	$(CONFIGURE_CUDA)
	cmake --build build/cuda --target atrousops_cuda
	$(KEEP_PTX)
endif

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

# The libraries built against the torch of constraints.txt, unchanged, under another torch. With -j2 that is installed
# while they are built. The matrix of versions: make abi ABI_ALL=1, and again with ABI_TORCH=2.11.0.
ABI_READY := $(VENV)-abi/.$(ABI_TORCH)$(if $(ABI_ALL),-all)
abi: $(VENV)/.built $(if $(ABI_ALL),$(VENV)/.tested) $(ABI_READY)
	$(VENV)-abi/bin/python -c "import torch; print('operator tests under torch', torch.__version__)"
	$(VENV)-abi/bin/python tests/compile/other_torch.py $(SYNTAX_TORCH)
	$(VENV)-abi/bin/python -m pytest -q -n logical --dist worksteal $(ABI_TESTS)
	PYTHONPATH=tests TRITON_INTERPRET=1 $(VENV)-abi/bin/python -m pytest -q -m triton $(ABI_TRITON)

# The interpreter of Triton 3.6, which torch 2.10 and 2.11 pin, fails under NumPy 2.4.
$(ABI_READY):
	$(PYTHON) -m venv --clear $(VENV)-abi
	$(VENV)-abi/bin/python -m pip install --quiet "torch==$(ABI_TORCH)" "numpy<2.4" pytest pytest-xdist hypothesis \
	  expecttest $(if $(ABI_ALL),torchvision pillow pydantic pyyaml safetensors scikit-image tqdm torchmetrics pycocotools)
	touch $@

# The CPU's kernels with AddressSanitizer and UndefinedBehaviorSanitizer; `make sanitize` has the CUDA kernels for the CPU
# so too, which takes longer than CI has.
SANITIZED = atrousops_cpu
sanitize: SANITIZED += atrousops_host_cuda
sanitized: export PATH := $(abspath $(BIN)):$(PATH)
sanitized: $(VENV)/.tested
	cmake -S . -B build/sanitized -G Ninja -DPython3_EXECUTABLE=$(abspath $(BIN))/python -DATROUSOPS_CUDA=OFF \
	  -DATROUSOPS_HOST_CUDA=ON -DATROUSOPS_SANITIZE=ON -DATROUSOPS_OUTPUT_DIR=$(abspath build/sanitized)
	cmake --build build/sanitized --target $(SANITIZED)

sanitize: sanitized
	$(BIN)/python -m pytest -q -n logical --dist worksteal tests/cuda/test_sanitized.py

# Random calls of the CPU's operators on every instruction set; for hours: make fuzz FUZZ_SECONDS=36000 FUZZ_SEED=1
fuzz: sanitized
	$(BIN)/python tests/fuzz_cpu.py --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) \
	  $(if $(FUZZ_CALLS),--calls $(FUZZ_CALLS))

# Everything that needs a GPU: tests, compute-sanitizer, benchmarks. It goes on where it stopped, and leaves
# benchmarks/results/<gpu>, and all of that in one file too. Without .venv, with libraries in atrousops/lib or nvcc:
# python3 tests/gpu_check.py
GPU_SECONDS ?= 840
gpu-check: $(VENV)/.tested
	$(BIN)/python tests/gpu_check.py --seconds $(GPU_SECONDS) --pack build/gpu-check.tar.gz

# What nvcc made of the CUDA kernels: its PTX, translated to C++ and run on the CPU. It needs nvcc.
ptx: $(VENV)/.tested
	$(BIN)/python -m pytest -q -n 0 tests/ptx

# `segment` and `evaluate` on a local cluster of two processes; Ray is some 150 MB, and takes half a minute. The package
# stays as it is built: to install it again would build it without what the other tests need.
ray: $(VENV)/.tested
	$(PIP) "ray[data]"
	$(BIN)/python -m pytest -q -n 0 tests/cluster

# The CUDA library's launch code and its PTX on a runtime that needs no GPU; nvcc alone is needed. It runs whatever needs
# a GPU, and fails if a kernel never ran.
EMULATED_TESTS ?= `$(BIN)/python tests/gpu_steps.py`
emulated: $(VENV)/.tested
	$(CONFIGURE_CUDA)
	cmake --build build/cuda --target emulated_gpu
	$(KEEP_PTX)
	cp atrousops/lib/libatrousops_cpu.so build/cuda/fake_cuda/
	$(BIN)/python tests/compile/resources.py --registers build/cuda/fake_cuda/libatrousops_cuda.so \
	  > build/cuda/fake_cuda/registers.json

emulated-gpu: emulated
	rm -rf build/emulated/launches
	ATROUSOPS_EMULATED_LAUNCHES=build/emulated/launches OMP_NUM_THREADS=1 $(BIN)/python tests/emulated_gpu/run.py \
	  -m pytest -q --tb=short -n logical --dist worksteal -m gpu $(EMULATED_TESTS)
	$(BIN)/python tests/emulated_gpu/launched.py build/emulated/launches

# For this Python, and the sources; of modules that are no more nothing goes in.
wheel: $(VENV)/.built
	rm -rf build/lib.*
	ATROUSOPS_CUDA=$(CUDA) $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')" > /dev/null

clean:
	rm -rf build dist atrousops/lib atrousops/_C*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.built: $(VENV)/bin/python $(SOURCES)
	$(PIP) torch torchvision "setuptools>=77" wheel pybind11 ninja cmake
	ATROUSOPS_CUDA=$(CUDA) $(PIP) --no-build-isolation -e ".[demo]"
	touch $@

# Tests execute the CUDA kernels on the CPU.
$(VENV)/.tested: export ATROUSOPS_CMAKE_ARGS += -DATROUSOPS_HOST_CUDA=ON
$(VENV)/.tested: $(VENV)/.built
	ATROUSOPS_CUDA=$(CUDA) $(PIP) --no-build-isolation -e ".[demo,test]"
	touch $@
