# make demo   makes .venv, installs, trains on scikit-learn's digits, predicts
# make test   the tests
# make lint   style and types

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
  && echo $$p && break; done)
VENV ?= .venv
RUN ?= runs/digits
PY := $(VENV)/bin/python

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "vit_jax needs Python 3.11, 3.12 or 3.13: make PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(PY) -m vit_jax.main --config=configs/digits.py --workdir=$(RUN)
	$(PY) -m vit_jax data save digits $(RUN)/test_images --split test --count 8
	$(PY) -m vit_jax predict $(RUN) $(RUN)/test_images
	@echo "Each folder is named for the digit that its images show."
	@echo "Look at: $(RUN)/model  the trained model;  $(RUN)/metrics.jsonl  its curves;"
	@echo "         $(RUN)/test_images  the images;  $(PY) -m vit_jax evaluate $(RUN)"

test: $(VENV)/installed
	$(PY) -m pytest -n 2 $(TESTS)

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
