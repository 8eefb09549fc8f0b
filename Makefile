# Anyone on a fresh machine needs two commands: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
# The pin decides which build pip takes; set TORCH to an installed-elsewhere version or a wheel's path if you like.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A second, older transformers beside the newest: its graphs differ (docs/compatibility in the README).
OLDER := $(VENV)/transformers-5.17
OLDER_PACKAGES := transformers==5.17.0 huggingface_hub==1.33.0
SOURCES := pyproject.toml CMakeLists.txt $(wildcard kernels/csrc/*/* kernels/csrc/include/sampleattn/*/*)

.PHONY: setup demo test lint unit older docs clean

setup: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "scikit-build-core>=1.1" "cmake>=3.26" ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test]"
	touch $@

$(OLDER)/.installed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet httpx
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDER) $(OLDER_PACKAGES)
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/quickstart.py

test: lint unit older

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest tests

older: $(OLDER)/.installed
	PYTHONPATH=$(OLDER) $(BIN)/python -m pytest tests/passes

clean:
	rm -rf $(VENV) build dist
