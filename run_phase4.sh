#!/usr/bin/env bash
# The whole pipeline on the small world: sets up .venv if it is absent, then base -> SFT -> reward model -> PPO and DPO.
# Run again, it keeps what is done; after Ctrl-C, run again to go on.  Overrides: ./run_phase4.sh seed=1 out=runs/seed1
set -euo pipefail
cd "$(dirname "$0")"
make --no-print-directory setup
exec .venv/bin/accord run configs/pipeline.yaml "$@"
