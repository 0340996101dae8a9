# make install   create the environment .venv, and install the command latent-pacs in it
# make demo      store, encode and retrieve four real mammograms; DICOM=folder uses your own files instead
# make test      check style and types, and run the fast tests on all cores
#                SLOW=1 runs the slow tests too, as CI does. SLOW=all also runs those that take minutes or measure time,
#                one at a time
# make coverage  run the fast tests, with SLOW=1 the slow ones too, and print by layer which lines and branches they run

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS ?=
# Containers often set it. Without compiled files each process of the tests compiles all modules anew.
unexport PYTHONDONTWRITEBYTECODE

# make audit     compare installed packages with known vulnerabilities; if the database cannot be reached, list the packages
#                in audit.json
# make sbom      write a CycloneDX bill of materials to sbom.json

.PHONY: install demo test coverage lint types audit sbom clean

install: .venv/installed
demo-install: .venv/installed-demo
test-install: .venv/installed-test

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("latent-pacs needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

# pip installs torch and torchvision in one go, so that they come as a matching pair
.venv/installed: .venv/bin/python pyproject.toml
	$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e .
	@touch $@

.venv/installed-demo: .venv/installed
	$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[demo]'
	@touch $@

.venv/installed-test: .venv/installed
	$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[test]'
	@touch $@

# make docs      write docs/COMMANDS.md from the commands, and build the web site with an API reference in build/site
.PHONY: docs
.venv/installed-docs: .venv/installed
	$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[docs]'
	@touch $@

docs: .venv/installed-docs
	$(BIN)/python docs/commands.py docs/COMMANDS.md
	$(BIN)/python docs/pages.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

demo: .venv/installed-demo
	$(BIN)/latent-pacs demo $(if $(DICOM),--dicom '$(DICOM)') $(if $(JSON),--json '$(JSON)')

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed-test
	$(BIN)/mypy

PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(if $(SLOW),-m 'not very_slow and not gpu') $(PYTEST_ARGS)

PYTEST_STATUS ?= /dev/null
test: lint types
	$(PYTEST) || { status=$$?; echo $$status > $(PYTEST_STATUS); exit $$status; }
	$(if $(filter all,$(SLOW)),$(BIN)/python -m pytest -m 'very_slow and not gpu' $(PYTEST_ARGS))

coverage: .venv/installed-test
	$(PYTEST) --cov --cov-report= --cov-report=json:coverage.json
	$(BIN)/python -m tests.support.coverage_by_layer coverage.json

audit: .venv/installed
	-$(PIP) install --quiet pip-audit
	@rm -f audit.json
	@$(BIN)/python -m pip_audit --progress-spinner off --format json --output audit.json || test ! -s audit.json || { cat audit.json; exit 1; }
	@test -s audit.json || { $(BIN)/latent-pacs sbom > audit.json && echo "The database of pip-audit cannot be reached. audit.json lists the installed versions, to be compared elsewhere."; }

sbom: .venv/installed
	@if test -x $(BIN)/cyclonedx-py; then $(BIN)/cyclonedx-py environment $(BIN)/python > sbom.json; else $(BIN)/latent-pacs sbom > sbom.json; fi

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage coverage.json
