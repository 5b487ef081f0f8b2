# make demo   create the environment, install, run the main job
# make test   create the environment, install, run every check
# Only git, make and Python 3.11 or newer with venv are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Workers of one thread each, that sleep where they wait: two busy-waiting processes on two cores
# slow each other down tenfold.
CALM := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
PYTEST := $(CALM) $(BIN)/python -m pytest -q -n 2

.PHONY: demo test test-all test-oldest lint unit wheel format clean

demo: $(VENV)/cli.stamp
	$(BIN)/matroot demo --output demo

test: lint unit wheel

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/support_table.py --check

unit: $(VENV)/dev.stamp
	$(PYTEST) -m "not slow and not gpu" --durations=5
	$(BIN)/python -m pytest -q --doctest-modules src/matroot

# The wheel as a user gets it: an environment of its own, another directory, no source tree on the
# path. PyTorch, several gigabytes, is read from the development environment by a path; the .pth
# files there, the editable install among them, are not run.
wheel: $(VENV)/dev.stamp
	rm -rf build/wheel && mkdir -p build/wheel/elsewhere
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel/build.log
	$(PYTHON) -m venv --without-pip build/wheel/venv
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$(echo build/wheel/venv/lib/python*/site-packages)/development.pth
	$(BIN)/pip --python build/wheel/venv install --quiet --no-deps --force-reinstall build/wheel/*.whl
	$(BIN)/pip --python build/wheel/venv check
	cd build/wheel && venv/bin/python -c "import matroot; \
	  assert 'build/wheel/venv' in matroot.__file__, matroot.__file__"
	cp -r tests/contract tests/instances.py tests/conftest.py pyproject.toml build/wheel/elsewhere
	cd build/wheel/elsewhere && mkdir tests && mv contract instances.py conftest.py tests && \
	  ../venv/bin/python -m pytest -q tests/contract/test_errors.py tests/contract/test_values.py \
	  tests/contract/test_native.py
# Without a compiler the wheel is pure Python.
	CXX=/nonexistent MATROOT_NATIVE=optional $(BIN)/python -m build --wheel --outdir build/wheel/pure . \
	  > build/wheel/pure.log 2>&1
	$(BIN)/python -c "import glob, zipfile; (wheel,) = glob.glob('build/wheel/pure/*.whl'); \
	  assert not any('_native' in name for name in zipfile.ZipFile(wheel).namelist()), wheel"

test-all: $(VENV)/dev.stamp
	$(PYTEST) -m "not gpu"

# The oldest supported PyTorch, in an environment of its own.
test-oldest:
	rm -rf build/oldest && $(PYTHON) -m venv build/oldest
	build/oldest/bin/pip install --quiet "torch==2.8.*" -e ".[dev]"
	$(CALM) build/oldest/bin/python -m pytest -q -n 2 -m "not slow and not gpu"

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard native/*)

$(VENV)/cli.stamp: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[cli]"
	touch $@

$(VENV)/dev.stamp: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo
