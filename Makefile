# make install   an environment in .venv with the command latent-pacs in it
# make demo      the whole road on a real study; DICOM=folder takes your own files
# make test      lint, types, tests on all cores; SLOW=1 runs the slow ones too, one at a time: some measure time; SLOW="FILES" those of some files

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS ?=

# make audit     compare installed versions with known vulnerabilities; without the database, list them in audit.json
# make sbom      a CycloneDX bill of materials in sbom.json

.PHONY: install demo test lint types audit sbom clean

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
	$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[demo,test]'
	@touch $@

# make docs      the web site in build/site, with an API reference from the docstrings
.PHONY: docs
.venv/installed-docs: .venv/installed
	$(PIP) install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[docs]'
	@touch $@

docs: .venv/installed-docs
	$(BIN)/python docs/pages.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

demo: .venv/installed-demo
	$(BIN)/latent-pacs demo $(if $(DICOM),--dicom '$(DICOM)') $(if $(JSON),--json '$(JSON)')

lint: .venv/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed-test
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup $(PYTEST_ARGS)
	$(if $(SLOW),$(BIN)/python -m pytest -m 'slow and not gpu' $(PYTEST_ARGS) $(filter-out 1,$(SLOW)))

audit: .venv/installed
	-$(PIP) install --quiet pip-audit
	@rm -f audit.json
	@$(BIN)/python -m pip_audit --progress-spinner off --format json --output audit.json || test ! -s audit.json || { cat audit.json; exit 1; }
	@test -s audit.json || { $(BIN)/latent-pacs sbom > audit.json && echo "The database of pip-audit cannot be reached. audit.json lists the installed versions, to be compared elsewhere."; }

sbom: .venv/installed
	@if test -x $(BIN)/cyclonedx-py; then $(BIN)/cyclonedx-py environment $(BIN)/python > sbom.json; else $(BIN)/latent-pacs sbom > sbom.json; fi

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
