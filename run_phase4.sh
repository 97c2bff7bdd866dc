#!/usr/bin/env bash
# The whole pipeline on the small world: installs into .venv what running needs, then base -> SFT -> reward model -> PPO and DPO.
# Run again, it keeps finished stages; after Ctrl-C, run again to resume.  Overrides: ./run_phase4.sh seed=1 out=runs/seed1
set -euo pipefail
cd "$(dirname "$0")"
make --no-print-directory setup
exec .venv/bin/accord run configs/pipeline.yaml "$@"
