# make demo   detect in the bundled recording        make test   the test suite
# make check  lint and types                         make clean  remove .venv and what was made
# make docs   the documentation as a site, in site/  make test-all  with the slow ones
# make package  the wheel and the sources, in dist/, and a check of the wheel
#
# On Linux, pip's torch is the CUDA build (several GB). For the CPU build: make demo TORCH_INDEX=<address>, the one that
# PyTorch's "Get started" page shows for "CPU"; or put CPU wheels where your pip finds them (PIP_FIND_LINKS).

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test test-all check types links docs package clean

demo: .venv/demo
	$(BIN)/python detect.py --events data/samples/street_td.dat
	@echo "watch     runs/detect/street_td/annotated.mp4"

test: .venv/dev
	$(BIN)/python -m pytest -n auto --dist loadgroup -m "not slow"

# Everything: slow tests, and many more examples of those that draw them.
test-all: .venv/dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n auto --dist loadgroup

check: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev links
	$(BIN)/mypy

docs: .venv/docs links
	$(BIN)/mkdocs build --strict

package: .venv/dev
	$(BIN)/python -m build -q
	$(BIN)/python -m pytest tests/test_packaging.py

# evburst with its four folders inside, as in a wheel: for tools that read source instead of importing it.
links:
	mkdir -p .mypy_links/evburst && ln -sfn ../../evburst/__init__.py ../../evburst/__main__.py ../../evburst/py.typed .mypy_links/evburst
	cd .mypy_links/evburst && ln -sfn ../../app ../../data ../../eval ../../models .

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) torch torchvision --index-url $(TORCH_INDEX))

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

# ultralytics brings the other build of OpenCV, which cannot be imported where the system lacks libGL (servers, containers):
# the headless build then replaces its files.
.venv/dev: .venv/demo
	$(PIP) -e '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(PIP) --force-reinstall --no-deps opencv-python-headless
	@touch $@

.venv/docs: .venv/demo
	$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv runs site dist
