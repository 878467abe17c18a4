# make demo          makes .venv, installs, trains on scikit-learn's digits, predicts
# make test          the tests
# make test-interop  makes .venv-interop, .venv and torch, timm, transformers and onnxruntime; compares with them
# make test-plan     makes .venv-plan, .venv and the compilers of TPUs and GPUs; plans for chips that are not here
# make lint          style and types
# make notebooks     colabs/*.ipynb from their scripts; GITHUB=OWNER/NAME prints links that open them in Colab

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
  && echo $$p && break; done)
VENV ?= .venv
INTEROP ?= .venv-interop
PLAN ?= .venv-plan
RUN ?= runs/digits
GITHUB ?=
NOTEBOOKS := $(sort $(wildcard colabs/*.ipynb))
PY := $(VENV)/bin/python
# of what is installed little is ever imported, and that is compiled when it first is
INSTALL := pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test test-interop test-plan lint notebooks clean
.DELETE_ON_ERROR:

define make_venv
@test -n "$(PYTHON)" || { echo "vit_jax needs Python 3.11, 3.12 or 3.13: make PYTHON=..."; exit 2; }
$(PYTHON) -m venv $(@D)
endef

# on top of $(VENV), whose packages a path of its own adds: only what is not there is installed
define make_venv_on_top
$(make_venv)
$(PY) -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
  > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
endef

$(VENV)/installed: pyproject.toml setup.py
	$(make_venv)
	$(PY) -m $(INSTALL) --editable '.[dev]'
	touch $@

# torchvision without its dependencies: only its Python is used, and its C++ would have to match torch's build;
# jax2onnx without them: it demands an older Orbax than ours, and does not import it here;
# lightly without them: of Lightning and Hydra its losses and heads need nothing
$(INTEROP)/installed: $(VENV)/installed tests/interop/requirements.txt
	$(make_venv_on_top)
	$(INTEROP)/bin/python -m $(INSTALL) 'vit_jax[onnx]' -r tests/interop/requirements.txt
	$(INTEROP)/bin/python -m $(INSTALL) --no-deps torchvision==0.28.0 jax2onnx==0.17.1 lightly==1.6.0
	touch $@

$(PLAN)/installed: $(VENV)/installed
	$(make_venv_on_top)
	$(PLAN)/bin/python -m $(INSTALL) 'vit_jax[plan-tpu,plan-cuda]'
	touch $@

demo: $(VENV)/installed
	$(PY) -m vit_jax.main --config=configs/digits.py --workdir=$(RUN)
	$(PY) -m vit_jax data save digits $(RUN)/test_images --split test --count 8
	$(PY) -m vit_jax predict $(RUN) $(RUN)/test_images
	@echo "Each folder is named for the digit that its images show."
	@echo "Look at: $(RUN)/report.html  curves, mistakes, measures;  $(RUN)/model  the trained model;"
	@echo "         $(RUN)/test_images  the images;  $(PY) -m vit_jax inspect $(RUN) --out $(RUN)/look"

test: $(VENV)/installed
	$(PY) -m pytest -n 2 $(TESTS)

test-interop: $(INTEROP)/installed
	$(INTEROP)/bin/python -m pytest -n 2 tests/interop $(TESTS)

test-plan: $(PLAN)/installed
	$(PLAN)/bin/python -m pytest -n 0 tests/test_plan.py -k chips_that_are_not_here $(TESTS)

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

notebooks: $(VENV)/installed
	$(PY) -m jupytext --quiet --to ipynb colabs/*.py
	@$(if $(GITHUB),printf '%s\n' $(NOTEBOOKS:%=https://colab.research.google.com/github/$(GITHUB)/blob/main/%))

clean:
	rm -rf $(VENV) $(INTEROP) $(PLAN) build dist *.egg-info
