# `make demo` and `make test` do everything on a machine with Python 3.10-3.13 and make.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: demo vgg16_mstar vgg16_mstar_400 vgg16_aid15a vgg16_aid15a_18x resnet20_mstar resnet20_mstar_max_drop mobilenet_mstar unet_water centernet_boats test lint test-slow install clean

demo: $(READY)
	$(PY) tools/train.py --flagfile=models/demo/train.flags --output=out/demo/teacher.keras
	$(PY) tools/compress.py --flagfile=models/demo/recipe.flags --teacher=out/demo/teacher.keras --workdir=out/demo

# repeat models/<name>: make vgg16_mstar_400 TEACHER=vgg16_mstar64.keras DATA=mstar10
vgg16_mstar vgg16_mstar_400 vgg16_aid15a vgg16_aid15a_18x: $(READY)
	$(PY) tools/compress.py --flagfile=models/$@/recipe.flags --teacher=$(TEACHER) --data_dir=$(DATA) --workdir=out/$@

# these train their teachers too: make resnet20_mstar DATA=mstar10
resnet20_mstar resnet20_mstar_max_drop mobilenet_mstar unet_water: $(READY)
	$(PY) tools/train.py --flagfile=models/$@/train.flags --data_dir=$(DATA) --output=out/$@/teacher.keras
	$(PY) tools/compress.py --flagfile=models/$@/recipe.flags --teacher=out/$@/teacher.keras --data_dir=$(DATA) \
		--workdir=out/$@

# the same, on the pictures with few and large enough boxes: make centernet_boats DATA=boats
centernet_boats: $(READY)
	$(PY) benchmarks/boats_few.py --data_dir=$(DATA) --output=out/boats_few
	$(PY) tools/train.py --flagfile=models/$@/train.flags --data_dir=out/boats_few --output=out/$@/teacher.keras
	$(PY) tools/compress.py --flagfile=models/$@/recipe.flags --teacher=out/$@/teacher.keras --data_dir=out/boats_few \
		--workdir=out/$@

test: lint
	# three on two cores: one waits for child processes; files in the order of tests/conftest.py
	$(PY) -m pytest -m "not slow" -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(PY) -m pytest -m slow

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

install: $(READY)

# made anew only when the requirements change
$(READY): setup.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[all,dev]"
	touch $@

clean:
	rm -rf $(VENV) out build dist *.egg-info
