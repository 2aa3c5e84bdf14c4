# `make demo` and `make test` do everything on a machine with Python 3.10-3.13 and make.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: demo test lint test-fast test-slow install clean

demo: $(READY)
	$(PY) tools/train.py --flagfile=models/demo/train.flags --output=out/demo/teacher.keras
	$(PY) tools/compress.py --flagfile=models/demo/recipe.flags --teacher=out/demo/teacher.keras --workdir=out/demo

test: lint
	$(PY) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(READY)
	$(PY) -m pytest -m slow

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

install: $(READY)

# made anew only when the requirements change
$(READY): setup.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
