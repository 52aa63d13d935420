# Everything runs in .venv, and what needs SGLang in .venv-sglang, because the engines pin different
# packages. The first target sets up from nothing. Needed on the machine: Python 3.11, g++ (C++17)
# and git. `make help` lists the targets.

PYTHON ?= python3.11
VENV := .venv
SGLANG_VENV := .venv-sglang
VENVS := $(VENV) $(SGLANG_VENV)
PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
SGLANG_STAMPS := $(SGLANG_VENV)/.stamps
# Where pip finds torch's CPU build: an index URL or a folder of wheels. Empty: pip's own indexes,
# then PyTorch's. A build for CUDA is never taken.
TORCH_INDEX ?=
TORCH_SPEC ?= torch==2.13.0
# For SGLang only, and of the release that goes with torch.
TORCHVISION_SPEC ?= torchvision==0.28.0
# Arguments of the demonstrations and tests, for instance ARGS="--model qwen3-moe".
ARGS ?=
# Processes that run tests: most of them wait for other processes, which import torch and an engine.
JOBS ?= 2

SOURCES := $(shell find csrc cmake configs -type f) CMakeLists.txt pyproject.toml
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
STEP = @printf '\n== %s\n'
PYTEST = -m pytest -q -n $(JOBS)
# Each test file by one process (tests/conftest.py), in their order.
BY_FILE = --dist loadscope --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-sglang doctor test test-fast test-vllm test-sglang sanitize lint format build \
	wheel bench bench-moe bench-served roofline clean distclean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMPS)/core $(STAMPS)/vllm $(STAMPS)/test $(STAMPS)/lint $(SGLANG_STAMPS)/core $(SGLANG_STAMPS)/test ## both environments, whole (make -j2: at a time)

demo: $(STAMPS)/core $(STAMPS)/vllm ## serve an FP8 model with vLLM on this machine and chat with it
	$(VENV)/bin/mate-plugin demo $(ARGS)

demo-sglang: $(SGLANG_STAMPS)/core ## the same with SGLang
	$(SGLANG_VENV)/bin/mate-plugin demo --engine sglang $(ARGS)

doctor: $(STAMPS)/core $(STAMPS)/vllm ## look at the machine and the installation
	$(VENV)/bin/mate-plugin doctor

test: test-fast test-vllm test-sglang ## all tests: the quick ones, then those that serve models
	@echo "All tests passed."

test-fast: $(STAMPS)/core $(STAMPS)/vllm $(STAMPS)/test ## tests without a real server
	$(STEP) "Tests (kernels, API, commands)"
	$(PY) $(PYTEST) $(BY_FILE) tests --ignore tests/vllm --ignore tests/sglang --ignore tests/musa $(ARGS)
	$(STEP) "Tests (MUSA kernels on a simulated device)"
	$(PY) $(PYTEST) tests/musa $(ARGS)

test-vllm: test-fast ## tests that serve models through vLLM (minutes)
	$(STEP) "Tests (serving through vLLM)"
	$(PY) $(PYTEST) $(BY_FILE) tests/vllm $(ARGS)

test-sglang: $(SGLANG_STAMPS)/core $(SGLANG_STAMPS)/test $(STAMPS)/core $(STAMPS)/vllm ## tests with SGLang, vLLM beside it (minutes)
	$(STEP) "Tests (serving through SGLang)"
	$(SGLANG_VENV)/bin/python $(PYTEST) $(BY_FILE) tests/sglang $(ARGS)

sanitize: $(STAMPS)/core $(STAMPS)/test ## the kernels' tests under AddressSanitizer and ThreadSanitizer
	$(PY) tools/sanitize.py $(ARGS)

lint: $(STAMPS)/core $(STAMPS)/lint ## formatting, lint and types
	$(STEP) "Lint"
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(VENV)/bin/mypy mate_plugin
	@echo "Lint is clean."

format: $(STAMPS)/lint ## format Python and C++
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

build: $(STAMPS)/core ## compile the core into .venv (editable)

wheel: $(STAMPS)/build ## build a wheel into dist/
	$(PY) -m pip wheel --no-deps --no-build-isolation -w dist .

bench: $(STAMPS)/core ## measure the CPU kernels against the machine's peaks
	$(PY) benchmarks/cpu.py $(ARGS)

bench-moe: $(STAMPS)/core $(STAMPS)/vllm ## measure a whole MoE layer beside vLLM's in bf16
	$(PY) benchmarks/cpu_moe.py $(ARGS)

bench-served: $(STAMPS)/core $(STAMPS)/vllm ## measure an FP8 model served by vLLM beside vLLM alone in bf16 (minutes)
	$(PY) benchmarks/served_vllm.py $(ARGS)

roofline: $(STAMPS)/core $(STAMPS)/bench ## draw grouped GEMMs beneath the machine's limits (minutes)
	$(PY) benchmarks/roofline.py $(ARGS)

clean: ## remove build outputs (the environments stay)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENVS:%=%/.stamps/core)

distclean: clean ## remove the environments too
	rm -rf $(VENVS)

$(VENVS:%=%/.stamps/venv): %/.stamps/venv:
	$(STEP) "Virtual environment in $*"
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another: make PYTHON=..."; exit 1; }
	@command -v g++ >/dev/null || { echo "g++ is not installed"; exit 1; }
	$(PYTHON) -m venv $*
	@mkdir -p $(@D) && touch $@

$(VENVS:%=%/.stamps/torch): %/.stamps/torch: %/.stamps/venv
	$(STEP) "torch, CPU build"
	$*/bin/python tools/venv.py torch "$(TORCH_SPEC)" "$(TORCH_INDEX)"
	@touch $@

$(VENVS:%=%/.stamps/build): %/.stamps/build: %/.stamps/torch requirements/build.txt
	$(STEP) "Build tools"
	$*/bin/python -m pip install -q -r requirements/build.txt
	@touch $@

# Engines come before our own packages, so that their narrower pins are there first.
$(STAMPS)/vllm: $(STAMPS)/torch requirements/vllm.txt tools/venv.py
	$(STEP) "vLLM, CPU build (a few minutes, 2.5 GB)"
	$(PY) tools/venv.py vllm
	@touch $@

$(SGLANG_STAMPS)/sglang: $(SGLANG_STAMPS)/torch $(wildcard requirements/sglang*.txt) tools/venv.py tools/torchvision_ops.py
	$(STEP) "SGLang (a few minutes, 2.6 GB)"
	$(SGLANG_VENV)/bin/python tools/venv.py sglang "$(TORCHVISION_SPEC)" "$(TORCH_INDEX)"
	@touch $@

$(STAMPS)/packages: | $(STAMPS)/vllm
$(SGLANG_STAMPS)/packages: | $(SGLANG_STAMPS)/sglang
$(VENVS:%=%/.stamps/packages): %/.stamps/packages: %/.stamps/build requirements/packages.txt
	$(STEP) "Packages that mate-plugin needs"
	$*/bin/python -m pip install -q -r requirements/packages.txt
	@touch $@

$(VENVS:%=%/.stamps/test): %/.stamps/test: %/.stamps/packages requirements/test.txt
	$(STEP) "Test tools"
	$*/bin/python -m pip install -q -r requirements/test.txt
	@touch $@

$(STAMPS)/bench: $(STAMPS)/packages requirements/bench.txt
	$(STEP) "What draws figures"
	$(PY) -m pip install -q -r requirements/bench.txt
	@touch $@

$(STAMPS)/lint: $(STAMPS)/venv requirements/lint.txt
	$(STEP) "Lint tools"
	$(PY) -m pip install -q -r requirements/lint.txt
	@touch $@

$(VENVS:%=%/.stamps/core): %/.stamps/core: %/.stamps/packages $(SOURCES)
	$(STEP) "Compiled core"
	$*/bin/python tools/venv.py core
	@touch $@
