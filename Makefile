# Targets run in virtual environments that are made on first use: .venv, with the versions of
# constraints.txt, and one more for each other interpreter or set of versions.
# Another interpreter: make test PYTHON=python3.13. Fewer tests: make test ARGS='-k sqlite'.

PYTHON ?= python3
ARGS ?=
WITH ?=
VENV := .venv$(if $(filter python3,$(PYTHON)),,-$(notdir $(PYTHON)))
UV := .venv-uv/bin/uv
RUN = $(VENV)/bin/python -m
# One worker more than processors: many tests wait, for a server that stops, or for a disk.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
PYTEST = $(RUN) pytest -n $(WORKERS) --dist loadgroup --durations=10 --durations-min=1
COVERAGE := --cov --cov-report=term-missing:skip-covered
# These mostly run other packages' code, and other tests run our lines as well. Coverage would nearly
# double their time.
UNMEASURED := $(patsubst %,tests/test_%.py,allowlist fuzz graphs hostile_rows model pgbouncer secrets \
	serde statements sync values)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-long test-oldest test-newest test-pythons test-postgresql-15 lock lint \
	format docs dist bench bench-quick bench-storage soak soak-quick cli-reference screenshots clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.examples ## Run the quickstart: an agent that is killed, resumed and forked
	$(VENV)/bin/python examples/quickstart.py

test: $(VENV)/.test .debian/pgbouncer ## Run the tests on SQLite and on a PostgreSQL that they start, with coverage
ifeq ($(ARGS),)
	$(PYTEST) -m 'not long' $(UNMEASURED)
	$(PYTEST) -m 'not long' $(addprefix --ignore=,$(UNMEASURED)) $(COVERAGE)
else
	$(PYTEST) -m 'not long' $(ARGS)
endif

test-long: $(VENV)/.long .debian/pgbouncer ## Run the long tests: kills, races, outages, load, fuzzing, real servers
	$(PYTEST) -m long $(ARGS)

# Direct dependencies only: they set the bounds of their own dependencies.
test-oldest: VENV := .venv-oldest
test-oldest: $(UV) .debian/pgbouncer ## Run the tests with the oldest version of each direct dependency
	$(UV) venv --quiet --clear --python $(PYTHON) $(VENV)
	$(UV) pip compile --quiet --resolution lowest-direct --no-deps --all-extras pyproject.toml \
		--python $(VENV) --output-file $(VENV)/constraints.txt
	$(UV) pip install --quiet --python $(VENV) --constraint $(VENV)/constraints.txt --editable . --group test
	$(PYTEST) -m 'not long' $(ARGS)

test-newest: VENV := .venv-newest
test-newest: $(UV) .debian/pgbouncer ## Run the tests with the newest versions; WITH='sqlalchemy<2.1' limits one
	$(UV) venv --quiet --clear --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(VENV) --editable . --group test $(foreach one,$(WITH),'$(one)')
	$(PYTEST) -m 'not long' $(ARGS)

test-pythons: ## Run unit tests, conformance and graphs on each Python that the machine has
	set -e; for python in $(PYTHON) $$($(PYTHON) tools/pythons.py); do \
		$(MAKE) test PYTHON=$$python ARGS='-m "(unit or everywhere) and not long"'; \
	done

test-postgresql-15: $(VENV)/.test .debian/postgresql-15 ## Run conformance, model and graphs on PostgreSQL 15
	CHECKPOINTER_TEST_POSTGRES_VERSION=15 $(PYTEST) -m everywhere -k postgresql $(ARGS)

lock: $(UV) ## Update constraints.txt to the newest versions that pyproject.toml allows
	$(UV) pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras \
		--group dev --group lock --no-annotate --custom-compile-command 'make lock' \
		--output-file constraints.txt pyproject.toml

lint: $(VENV)/.dev ## Check style, format, types and workflows
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/zizmor --offline --quiet .

format: $(VENV)/.dev ## Format the code, and fix what ruff can fix
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

# Pages must load nothing from elsewhere: no fonts, scripts or styles.
docs: $(VENV)/.docs ## Build the documentation into site/; a warning fails
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict
	! grep -rEo '<(script|link|img|iframe)[^>]*(src|href)="?(https?:)?//[^>]*' site --include='*.html'

dist: $(VENV)/.release ## Build the source distribution and the wheel into dist/, and check both
	rm -rf dist
	$(RUN) build
	$(RUN) twine check --strict dist/*

bench: $(VENV)/.bench ## Compare speed with the official savers, and write docs/benchmarks.md
	$(VENV)/bin/python benchmarks/speed.py $(ARGS)

bench-quick: $(VENV)/.bench ## Compare speed in about a minute: fewer rounds, small sizes, no file written
	$(VENV)/bin/python benchmarks/speed.py --quick $(ARGS)

bench-storage: $(VENV)/.bench ## Compare the bytes stored with those of the official savers
	$(VENV)/bin/python benchmarks/storage.py $(ARGS)

soak: $(VENV)/.bench ## Run 200 agents for ten minutes on each database: nothing may fail, be lost or grow
	$(VENV)/bin/python benchmarks/soak.py $(ARGS)

soak-quick: $(VENV)/.bench ## Run the soak test in about two minutes
	$(VENV)/bin/python benchmarks/soak.py --quick $(ARGS)

cli-reference: $(VENV)/.test ## Write docs/cli.md from the help of the commands
	$(VENV)/bin/python tools/cli_reference.py

screenshots: $(VENV)/.test ## Draw what the commands print, as docs/screenshots/*.svg
	$(VENV)/bin/python tools/screenshots.py

clean: ## Remove environments, unpacked programs, caches and builds
	rm -rf .venv* .debian build dist site *.egg-info .coverage .coverage.* \
		.hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp file for each dependency group, so that a group is installed again only when it may have
# changed. `dev` contains the other groups.
$(addprefix $(VENV)/.,examples test long bench docs release dev): $(VENV)/.%: $(VENV)/.pip pyproject.toml
	$(RUN) pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable . --group $*
	@touch $@ $(if $(filter dev,$*),$(addprefix $(VENV)/.,examples test long bench docs release))

# The pip that comes with Python 3.11 does not know dependency groups.
$(VENV)/.pip: constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) pip install --quiet --constraint constraints.txt pip
	@touch $@

$(UV): constraints.txt
	$(PYTHON) -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install --quiet --constraint constraints.txt uv
	@touch $@

# Programs from Debian's packages. If the download fails, the script says so, and make continues.
.debian/%:
	$(PYTHON) tests/debian.py $*
