# Two commands: `make run` trains the embedded model with KTO and shows it before and after; `make test` runs the
# tests. Each makes its own environment in .venv the first time and starts at once afterwards.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: run test gpu lint slow mutants site clean

run: $(READY)
	$(BIN)/grolang run methods/kto.gro

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests methods

slow: $(READY)
	$(BIN)/python -m pytest -m slow tests

mutants: $(READY)
	$(BIN)/python tests/mutants/run.py

gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/types && mkdir -p build/types/grolang  # the package as it installs, for mypy
	@ln -s $(CURDIR)/grolang/* build/types/grolang/
	@ln -s $(CURDIR)/runtime $(CURDIR)/methods $(CURDIR)/grammar build/types/grolang/
	cd build/types && $(abspath $(BIN))/mypy --cache-dir $(CURDIR)/.mypy_cache --config-file $(CURDIR)/pyproject.toml -p grolang

site: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --quiet

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info runs
