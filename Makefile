# make quickstart   install, get a corpus, build shards, train a small model, use it; again: goes on with what is there
#   STEPS=600: how long it trains, 50 or more as the warm-up has 50
# make test         the tests, in the same environment        make check   format, lint, layers, types, fast tests
# make parity       compare all layouts with one process      make lock    pin what pyproject.toml asks for, anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRANSFORMERS := $(VENV)/transformers/.installed
LM_EVAL := $(VENV)/lm_eval/.installed
ATHERIS := $(VENV)/atheris/.installed
FUZZ_SECONDS ?= 60
STEPS ?= 600
LAYOUTS ?= 40

# make test-long    the tests that take minutes each      make test-gpu   the tests that need a GPU
# make peers        install what benchmarks/step.py compares with
# make test-triton  the kernels for GPUs, interpreted on a CPU
# make test-layouts  every rank of 40 random layouts of up to 64 ranks, in one process: none may hang; LAYOUTS=100
# make fuzz         files of others: damaged in many more ways than `make check` tries, then led by the lines that they
#   FUZZ_SECONDS=60: how long for each reader     reach (atheris); what fails is left in build/fuzz
# make test-faults   injects real faults into real runs; prints the table of docs/faults.md
# make -C tests/cluster TARGET   tests that need root or apt: several nodes, Slurm, Kubernetes, PostgreSQL, a browser

# make reproduce-tiny  three rows of the paper's table, tiny, with two seeds: the path of brt reproduce, in minutes

# make test-lm-eval  lm-evaluation-harness on an export for transformers, in an environment of its own; offline

.PHONY: quickstart install peers test test-long test-layouts test-gpu test-triton test-lm-eval test-faults reproduce-tiny check format parity fuzz lock clean

quickstart: $(INSTALLED)
	$(BIN)/brt data corpus books --out quickstart/corpus
	$(BIN)/brt data build quickstart/corpus/train --out quickstart/data/train --tokenizer bpe:4096 --shard-size 1MB
	$(BIN)/brt data build quickstart/corpus/validation --out quickstart/data/validation \
		--tokenizer quickstart/data/train/tokenizer.json
	$(BIN)/brt train examples/quickstart.yaml run.steps=$(STEPS)
	$(BIN)/brt eval quickstart/run --data quickstart/data/validation --documents 1 --plot quickstart/positions.png
	$(BIN)/brt generate quickstart/run --prompt "ROMEO." --tokens 120 --temperature 0.8

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

$(TRANSFORMERS): $(INSTALLED) requirements-transformers.lock
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(@D) --requirement requirements-transformers.lock
	@touch $@

$(LM_EVAL): $(INSTALLED) requirements-transformers.lock requirements-lm-eval.lock
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(@D) --requirement requirements-transformers.lock \
		--requirement requirements-lm-eval.lock
	@touch $@

$(ATHERIS): $(INSTALLED) requirements-fuzz.lock
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(@D) --requirement requirements-fuzz.lock
	@touch $@

peers: $(INSTALLED) $(TRANSFORMERS) requirements-peers.lock
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/peers --requirement requirements-peers.lock
	@touch $(VENV)/peers/.installed

test: $(INSTALLED) $(TRANSFORMERS)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"  # the long files first

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m "not slow"

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: $(INSTALLED)
	$(BIN)/python -m tests.parallel

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -n 4 tests/gpu

test-triton: $(INSTALLED)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/triton "triton==3.6.0" "numpy==2.2.6"
	PYTHONPATH=$(VENV)/triton TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/unit/model/test_triton_kernels.py

test-lm-eval: $(LM_EVAL)
	$(BIN)/python -m pytest tests/harness

test-layouts: $(INSTALLED)
	$(BIN)/python -m tests.scale --layouts $(LAYOUTS) > /dev/null

test-faults: $(INSTALLED)
	$(BIN)/python -m tests.faults

fuzz: $(INSTALLED) $(ATHERIS)
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -n 2 --timeout 7200 tests/unit/fuzz
	PYTHONPATH=$(VENV)/atheris $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

reproduce-tiny: $(INSTALLED)
	$(BIN)/brt reproduce table1 --scale tiny --data books --seeds 2 --documents 2 --out build/reproduce \
		--only XL:1024 --only Slide:13L --only Rec:fixed:skip

lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet ".[dev]"
	(sed -n '/^#/p' requirements.lock; $(VENV)-lock/bin/pip freeze --exclude brt_dist | sed 's/+cpu$$//') > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
