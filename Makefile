# Two commands are enough on a fresh machine: `make demo` and `make test`.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
BOOTSTRAP := $(VENV)/.bootstrap
UV := $(or $(shell command -v uv),$(BIN)/uv)
PROTOS := $(wildcard proto/macmesh/v1/*.proto)
NATIVE := rdma/CMakeLists.txt $(wildcard rdma/native/*/*.h rdma/native/*/*.cpp)

# Every worker is a process of its own, which would compile what it imports anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo sim mutants faults soak test lint types imports proto proto-check unit native sanitize format lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## the local virtual environment with everything pinned

$(BOOTSTRAP): requirements/bootstrap.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test "$(UV)" != "$(BIN)/uv" || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.lock
	@touch $@

# The build back end takes CMake and Ninja of the virtual environment, not the system's.
$(STAMP): $(BOOTSTRAP) requirements/dev.lock pyproject.toml rdma/pyproject.toml $(NATIVE)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable . --editable rdma
	@touch $@

demo: setup ## three daemons on this machine find each other, plan, load and generate; TRANSPORT=verbs
	$(BIN)/daemonctl demo $(if $(TRANSPORT),--transport $(TRANSPORT))

SEEDS ?= 2000
FIRST ?= 0
JOBS ?= 2

sim: setup ## the cluster core under seeded faults: SEEDS=2000 FIRST=0 JOBS=2
	PYTHONPATH=tests $(BIN)/python -m simulator --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS)

mutants: setup ## single-line breaks of the cluster core, each of which must be caught
	PYTHONPATH=tests $(BIN)/python -m simulator.mutants --jobs $(JOBS)

faults: setup ## faults on real daemons, most in network namespaces (root on Linux); ONLY=NAME for one
	PYTHONPATH=tests $(BIN)/python -m faults $(if $(ONLY),--only $(ONLY))

CHANGES ?= 50
SEED ?= 1

soak: setup ## random changes in a row under streams on real daemons: CHANGES=50 SEED=1
	PYTHONPATH=tests $(BIN)/python -m faults.soak --changes $(CHANGES) --seed $(SEED)

test: setup ## what there is to check; the build server checks more
	$(MAKE) --jobs=2 lint types imports proto-check native
	$(MAKE) unit
	$(MAKE) sim SEEDS=300
	$(MAKE) demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

proto: setup ## generate the protobuf and gRPC code
	$(BIN)/python proto/generate.py

proto-check: setup
	$(BIN)/python proto/generate.py --check

# Many tests wait: for a time to pass, or for a process.
UNIT_JOBS ?= 3

unit: setup ## unit and process tests: UNIT_JOBS=3
	$(BIN)/python -m pytest -n $(UNIT_JOBS) --dist worksteal

native: setup ## the native tests of the transport
	$(call native_tests,native,)

sanitize: setup ## the same under the address and the thread sanitizer
	$(call native_tests,address,-DMACMESH_SANITIZER=address)
	$(call native_tests,thread,-DMACMESH_SANITIZER=thread)

define native_tests
$(BIN)/cmake -S rdma -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DMACMESH_TESTS=ON $(2) >/dev/null
$(BIN)/cmake --build build/$(1) >build/$(1)/build.log || { cat build/$(1)/build.log; exit 1; }
$(BIN)/ctest --test-dir build/$(1) --output-on-failure --progress
endef

format: setup ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BOOTSTRAP) ## refresh the hash-locked requirement files
	$(call compile_lock,dev)
	$(call compile_lock,bootstrap)

# Keeps the versions of the old file as far as it can be read, but takes every hash anew.
define compile_lock
@sed -nE 's/^([A-Za-z0-9][A-Za-z0-9._-]*==[0-9][^\\]*[^\\ ]) *\\?$$/\1/p' requirements/$(1).lock >requirements/$(1).lock.new
$(UV) pip compile --quiet --universal --generate-hashes --python $(BIN)/python --python-version 3.11 --no-header --no-annotate requirements/$(1).in -o requirements/$(1).lock.new
@mv requirements/$(1).lock.new requirements/$(1).lock
endef

clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
