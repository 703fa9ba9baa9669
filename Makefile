# Everything runs in .venv, which is made on first use and follows pyproject.toml.
# Another interpreter: make test PYTHON=python3.13. Fewer tests: make test ARGS='-k sqlite'.

PYTHON ?= python3
ARGS ?=
VENV := .venv
# One more than there are processors: many tests wait, for a server that is stopped, or for a disk.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
RUN := $(VENV)/bin/python -m

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format docs bench bench-quick bench-storage soak soak-quick \
	cli-reference screenshots clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.examples ## Run the quickstart: an agent that is killed, resumed and forked
	$(VENV)/bin/python examples/quickstart.py

test: $(VENV)/.test $(VENV)/pgbouncer ## Run all tests on SQLite and on a PostgreSQL of their own, with coverage
	$(RUN) pytest -n $(WORKERS) --dist loadgroup --cov --cov-report=term-missing:skip-covered $(ARGS)

lint: $(VENV)/.dev ## Check style, format and types
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pyright --pythonpath $(VENV)/bin/python

format: $(VENV)/.dev ## Format the code, and mend what ruff can mend
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

# Pages must load nothing from elsewhere: no fonts, scripts or styles.
docs: $(VENV)/.docs ## Build the documentation into site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict
	! grep -rEo '<(script|link|img|iframe)[^>]*(src|href)="?(https?:)?//[^>]*' site --include='*.html'

bench: $(VENV)/.bench ## Measure everything beside the official savers, and write docs/benchmarks.md
	$(VENV)/bin/python benchmarks/speed.py $(ARGS)

bench-quick: $(VENV)/.bench ## The same in about a minute: fewer rounds, small sizes, nothing written
	$(VENV)/bin/python benchmarks/speed.py --quick $(ARGS)

bench-storage: $(VENV)/.bench ## Measure the bytes stored, beside the official savers'
	$(VENV)/bin/python benchmarks/storage.py $(ARGS)

soak: $(VENV)/.bench ## Let 200 agents work for ten minutes a database: nothing may fail, be lost or grow
	$(VENV)/bin/python benchmarks/soak.py $(ARGS)

soak-quick: $(VENV)/.bench ## The same in about two minutes
	$(VENV)/bin/python benchmarks/soak.py --quick $(ARGS)

cli-reference: $(VENV)/.test ## Write docs/cli.md from what the commands say of themselves
	$(VENV)/bin/python tools/cli_reference.py

screenshots: $(VENV)/.test ## Draw what the commands print, as docs/screenshots/*.svg
	$(VENV)/bin/python tools/screenshots.py

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) build dist site *.egg-info .coverage .coverage.* \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each dependency group, so that it is installed again only when it may have changed;
# `dev` holds all of them.
$(VENV)/.examples $(VENV)/.test $(VENV)/.bench $(VENV)/.docs $(VENV)/.dev: $(VENV)/.%: $(VENV)/.pip pyproject.toml
	$(RUN) pip install --quiet --editable . --group $*
	@touch $@ $(if $(filter dev,$*),$(addprefix $(VENV)/.,examples test bench docs))

# PgBouncer from the distribution's packages; where there are none, this says so and goes on.
$(VENV)/pgbouncer: | $(VENV)/.test
	$(VENV)/bin/python tests/pgbouncer.py

# Python 3.11 brings a pip that does not know dependency groups yet.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade 'pip>=25.1'
	@touch $@
