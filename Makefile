# make demo   create the environment, install, run the main job
# make test   create the environment, install, run every check
# make docs   create the environment, install, build the site into build/docs and check it
# Only git, make and Python 3.11 or newer with venv are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Workers of one thread each, that sleep where they wait: two busy-waiting processes on two cores
# slow each other down tenfold.
CALM := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
# Make's own CXX is g++.
CLANG := $(if $(filter default,$(origin CXX)),clang++,$(CXX))
PYTEST := $(CALM) $(BIN)/python -m pytest -q -n 2

.PHONY: demo docs test test-all test-older lint unit wheel types sanitize fuzz format clean

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
	$(PYTEST) -m "not slow and not gpu" --durations=25
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
	  tests/contract/test_native.py tests/contract/test_openmp.py
	cd build/wheel/elsewhere && \
	  ../venv/bin/python -m pytest -q tests/contract/test_backends.py -k native
# Without a compiler the wheel is pure Python.
	CXX=/nonexistent MATROOT_NATIVE=optional $(BIN)/python -m build --wheel --outdir build/wheel/pure . \
	  > build/wheel/pure.log 2>&1
	$(BIN)/python -c "import glob, zipfile; (wheel,) = glob.glob('build/wheel/pure/*.whl'); \
	  assert not any(name.endswith('.so') for name in zipfile.ZipFile(wheel).namelist()), wheel"

test-all: $(VENV)/dev.stamp
	$(PYTEST) -m "not gpu"

# Older releases of PyTorch, the last of each minor version down to the oldest that is supported: the
# contract and export tests, in one environment after the other of some 5 GB, removed afterwards.
#   make test-older VERSIONS="2.8 2.11"
VERSIONS ?= $(shell $(BIN)/python -c "import importlib.metadata as m; \
  print(*(f'2.{i}' for i in range(8, int(m.version('torch').split('.')[1]))))")
OLDER := build/older/bin
# NumPy's 2.4 takes no array for a number any more, as the interpreter of Triton 3.6 and before does.
WITH := "numpy<2.4" expecttest hypothesis mpmath onnx onnxruntime onnxscript POT pytest \
  pytest-timeout pytest-xdist scipy typer

test-older: $(VENV)/dev.stamp
	@passed=; failed=; missing=; \
	for version in $(VERSIONS); do \
	  echo "PyTorch $$version"; rm -rf build/older; $(PYTHON) -m venv build/older; \
	  if ! $(OLDER)/pip install --quiet "torch==$$version.*" $(WITH) -e .; then \
	    missing="$$missing $$version"; \
	  elif $(CALM) $(OLDER)/python -m pytest -q -n 2 tests/contract -m "not slow and not gpu"; then \
	    passed="$$passed $$version"; \
	  else \
	    failed="$$failed $$version"; \
	  fi; \
	done; rm -rf build/older; \
	echo "passed:$${passed:- none}; failed:$${failed:- none}; did not install:$${missing:- none}"; \
	test -n "$$passed" -a -z "$$failed"

# Whether every public name has a type, by pyright, which pip and npm bring, with Microsoft's stubs of
# scikit-learn, which has no types. Beside the environment: its mypy would read these stubs too.
TYPES := $(CURDIR)/build/types
types: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet --upgrade --target $(TYPES) pyright scikit-learn-stubs
	PATH=$(CURDIR)/$(BIN):$$PATH PYTHONPATH=$(CURDIR)/src:$(TYPES) \
	  python -m pyright --verifytypes matroot --ignoreexternal

# The compiled kernels under address, undefined and thread sanitizers and valgrind.
#   make sanitize CXX=clang++-19
sanitize: $(VENV)/dev.stamp
	CXX=$(CLANG) $(BIN)/python tests/fuzz/run.py sanitize

# Coverage-guided fuzzing: so many minutes for the kernels, and as many for what reads files.
MINUTES ?= 30
fuzz: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet atheris
	CXX=$(CLANG) $(BIN)/python tests/fuzz/run.py fuzz $(MINUTES)

# The site. The programs of the gallery run, those that have not changed since the last time do not.
docs: $(VENV)/docs.stamp
	rm -rf build/docs
	$(CALM) $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --write-all \
	  --doctree-dir build/doctrees docs build/docs
	$(BIN)/python docs/check_site.py build/docs

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE := $(wildcard native/*)

$(VENV)/cli.stamp: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[cli]"
	touch $@

$(VENV)/docs.stamp: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/dev.stamp: pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo docs/gallery
