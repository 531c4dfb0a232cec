# Needs python3 (3.11 or newer, with venv) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
SOURCES := $(shell find dotmac_tasks dotmac_tasks_django -type f -not -path '*/__pycache__/*')

# Interpreters come from the system, never from a download.
export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help test check docs format bench soak demo serve clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

# The tools; rebuilt when the dependencies change.
$(VENV)/.tools: setup.cfg
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP_INSTALL) '.[redis,django,test,docs]' tox tox-uv
	@touch $@

# The packages as a user gets them: a wheel built afresh, never the working tree.
$(VENV)/.installed: $(VENV)/.tools pyproject.toml README.md LICENSE $(SOURCES)
	@rm -rf build
	$(BIN)/python $(PIP_INSTALL) --no-deps --force-reinstall .
	@rm -rf build
	@touch $@

# A virtual environment of its own: what is compared against caps its Django.
$(BENCH)/.installed: setup.cfg pyproject.toml README.md LICENSE $(SOURCES)
	$(PYTHON) -m venv $(BENCH)
	@rm -rf build
	$(BENCH)/bin/python $(PIP_INSTALL) --force-reinstall '.[redis,django,bench]'
	@rm -rf build
	@touch $@

test: $(VENV)/.installed ## the whole suite on the installed wheel, 100 % coverage
	@$(BIN)/coverage erase
	PYTHONDEVMODE=1 PYTHONSAFEPATH=1 $(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: test ## what CI runs: the suite, then every environment of tox.ini
	$(BIN)/tox run --skip-env coverage

docs: $(VENV)/.installed ## build docs/_build/html
	$(BIN)/sphinx-build -n -W --keep-going docs docs/_build/html

format: $(VENV)/.tools ## format and fix
	$(BIN)/tox exec -e lint -- ruff check --fix-only
	$(BIN)/tox exec -e lint -- ruff format

bench: $(BENCH)/.installed ## measure
	$(BENCH)/bin/python -m benchmarks $(ARGS)

soak: $(VENV)/.installed ## mixed traffic through every outage, and an exact audit
	PYTHONSAFEPATH=1 PYTHONPATH=tests $(BIN)/python -m support.soak $(ARGS)

demo: $(VENV)/.installed ## a storm of retried orders against a real shop
	$(BIN)/python examples/shop/demo.py $(ARGS)

serve: $(VENV)/.installed ## leave the shop running and try it with curl
	$(BIN)/python examples/shop/demo.py serve $(ARGS)

clean: ## remove what the targets made
	rm -rf $(VENV) $(BENCH) .tox build dist docs/_build *.egg-info .coverage .coverage.*
