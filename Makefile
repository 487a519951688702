# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test install lint docs package clean

demo: $(VENV)/.installed
	$(BIN)/geoquant demo --output geoquant-demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n 2 -q
	$(MAKE) docs package

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel and the sdist are built, and each is installed into an environment of its own and imported.
package: $(VENV)/.installed-dev
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m build --no-isolation --quiet
	$(BIN)/python tests/check_packages.py dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet -e ".[dev]"
	touch $@ $(VENV)/.installed

install: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) dist site geoquant-demo .mypy_cache .ruff_cache
