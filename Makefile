# `make quickstart` and `make test` are all a fresh machine needs: Python >= 3.11, make, a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_SLOW := $(VENV)/.installed-slow
# Threads that wait should sleep: spinning ones slow small models down many times over when cores are shared.
export OMP_WAIT_POLICY ?= passive

# Processes that start later import in half the time, also where Python was told to write no bytecode.
PIP_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode

# The lowest versions that setup.cfg allows; the other packages are the newest that fit.
OLDEST_VENV := .venv-oldest
OLDEST := "torch==2.11.*" "transformers==5.17.*"
INSTALLED_OLDEST := $(OLDEST_VENV)/.installed

.PHONY: quickstart test test-fast test-slow test-oldest quality style benchmark install clean

quickstart: install  ## Fine-tune on megapixel digits, show the result, reload it.
	$(BIN)/python scripts/quickstart.py

test: install  ## Every test but the slow ones, a process for each core.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto

# Of tests/model most are quick; those that trace, train or start processes are not, and their names say so.
QUICK := not tracing and not export and not compile and not every_way and not learns and not remote_code and not code_version
test-fast: install  ## The quick tests of the model and of data sets, for the daily loop.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -k "$(QUICK)" -n auto tests/model tests/data

test-slow: $(INSTALLED_SLOW)  ## The slow tests only, two at a time; installs what they need beside the others.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

test-oldest: $(INSTALLED_OLDEST)  ## Every test but the slow ones, on the oldest torch and transformers supported.
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -m "not slow" -n auto

quality: install  ## Lint, check the format, and that imports lead down.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports setup.cfg

style: install  ## Mend what `quality` complains of, where a tool can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: install  ## Speed and memory beside transformers' ViT.
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
