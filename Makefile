# Needs Python 3.10 or newer with venv, and make. Each target sets up what it needs in .venv, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all lint format bench bench-gpu evidence docs dist wheel-check clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /	/' | expand -t 14

demo: $(VENV)/.runs  ## train a small network on generated shapes and show what it learned (minutes)
	$(BIN)/interpretable-training demo

test: $(VENV)/.tests  ## run the default tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/.tests  ## run all tests, the slow ones too
	$(BIN)/python -m pytest -m ""

lint: $(VENV)/.lints  ## check format, style, spelling and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell *.md llms.txt docs benchmarks interpretable_training callbacks recipes configs
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --target build/installed .
	cd build/installed && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml interpretable_training

format: $(VENV)/.lints  ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.tests  ## run the benchmarks against the peers (nothing else should run meanwhile)
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

bench-gpu: $(VENV)/.tests  ## measure on a GPU in less than eight minutes; ends with a sentence without one
	$(BIN)/python benchmarks/bench_gpu.py

evidence: $(VENV)/.tests  ## compute docs/evidence.md anew; hours, and it goes on where it stopped
	$(BIN)/python -m interpretable_training.recipes.evidence

docs: $(VENV)/.docs  ## build the pages of docs/ as a site in build/site, which works without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist:  ## build wheel and source distribution in a clean venv, and check both
	rm -rf build dist $(VENV)-dist
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet build check-wheel-contents twine
	$(VENV)-dist/bin/python -m build --outdir dist .
	$(VENV)-dist/bin/python -m twine check --strict dist/*
	$(VENV)-dist/bin/check-wheel-contents dist/*.whl
	rm -rf build $(VENV)-dist

wheel-check: dist  ## install the wheel into an empty venv, import every public name and find a configuration there
	rm -rf $(VENV)-wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet dist/*.whl
	cd dist && $(abspath $(VENV)-wheel)/bin/python ../tests/import_every_name.py
	cd dist && $(abspath $(VENV)-wheel)/bin/interpretable-training fit --config baseline --print_config > /dev/null
	rm -rf $(VENV)-wheel

clean:  ## remove everything that the targets above made
	rm -rf $(VENV) $(VENV)-dist $(VENV)-wheel .venvs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Stamps: a venv is made once and brought up to date when pyproject.toml changes.
$(BIN)/python:
	@echo "Creating $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runs: $(BIN)/python pyproject.toml
	@echo "Installing the package with torch and lightning into $(VENV) (once, some minutes)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.runs
	@echo "Installing the test tools and the peers used as oracles into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV)/.docs: $(VENV)/.runs
	@echo "Installing mkdocs into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

$(VENV)/.lints: $(VENV)/.tests
	@echo "Installing ruff, codespell and mypy into $(VENV) (once)"
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	@touch $@
