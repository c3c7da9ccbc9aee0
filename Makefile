# `make quickstart` and `make test` are all a fresh machine needs: Python >= 3.11, make, a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_SLOW := $(VENV)/.installed-slow
# Waiting threads sleep: spinning ones slow small models down many times when cores are shared.
export OMP_WAIT_POLICY ?= passive

# Bytecode halves the import time of later processes, even if Python is set to write none.
PIP_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

# The lowest versions that setup.cfg allows; the other packages are the newest that fit.
OLDEST_VENV := .venv-oldest
OLDEST := "torch==2.11.*" "transformers==5.17.*"
INSTALLED_OLDEST := $(OLDEST_VENV)/.installed

.PHONY: quickstart test test-fast test-slow test-oldest quality docs style benchmark install clean

quickstart: install  ## Fine-tune on megapixel digits, show the result, reload it.
	$(BIN)/python scripts/quickstart.py

test: install  ## All tests except the slow ones, one process for each core.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto

# Most of tests/model is quick; the names of tests that trace, train or start processes are excluded.
QUICK := not tracing and not export and not compile and not every_way and not learns and not remote_code and not code_version
test-fast: install  ## The quick tests of the model and of data sets, for the daily loop.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -k "$(QUICK)" -n auto tests/model tests/data

test-slow: $(INSTALLED_SLOW)  ## The slow tests only, two at a time; installs their additional requirements.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

test-oldest: $(INSTALLED_OLDEST)  ## All tests except the slow ones, on the oldest torch and transformers.
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -m "not slow" -n auto

quality: install  ## Lint, check the format and the layers of imports, and build the documentation.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports setup.cfg
	$(MAKE) docs

docs: install  ## Pages in build/docs; fails for dead links and undocumented names, fields and flags.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

style: install  ## Fix lint and format automatically where possible.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install  ## Compare speed and memory with transformers' ViT.
	$(BIN)/python scripts/benchmark.py

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python >= 3.11 is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(PIP_INSTALL) -e ".[dev]"
	touch $@

$(INSTALLED_OLDEST): $(INSTALLED)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST_VENV)
	$(BIN)/uv pip install --quiet --python $(OLDEST_VENV)/bin/python --compile-bytecode -e ".[dev]" $(OLDEST)
	touch $@

$(INSTALLED_SLOW): $(INSTALLED)
	$(PIP_INSTALL) -e ".[dev,slow]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST_VENV) runs build *.egg-info
