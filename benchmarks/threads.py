"""The comparisons of this folder with OMP_NUM_THREADS=2, in wall seconds: two threads must keep the ratios.

    python benchmarks/threads.py

Calls each file with ``--threads 2``; its rows keep their targets.  Wall seconds are meaningful only on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = [
    ["losses_trl.py", "--size", "tiny", "--only", "sft"],
    ["losses_trl.py", "--size", "tiny", "--only", "dpo"],
    ["rollout_hf.py", "--only", "rollout_tiny_fp32"],
    ["ppo_trl.py", "--only", "tiny"],
]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if (os.cpu_count() or 1) < 2:
        print("one processor: two threads cannot be measured here")
        return 0
    codes = []
    for name, *arguments in COMMANDS:
        command = [sys.executable, str(ROOT / name), *arguments, "--rounds", "3", "--threads", "2"]
        codes.append(subprocess.run(command, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
