"""Two threads must not lose the ratio: the comparisons of this folder again with OMP_NUM_THREADS=2, in wall seconds.

    python benchmarks/threads.py [--quick]

Calls each file with ``--threads 2``; its rows keep their bars.  Wall seconds mean something on a quiet machine alone.
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of SFT")
    quick = parser.parse_args().quick
    rounds = ["--rounds", "1" if quick else "3"]
    if (os.cpu_count() or 1) < 2:
        print("one processor: two threads cannot be measured here")
        return 0
    codes = []
    for name, *arguments in COMMANDS[:1] if quick else COMMANDS:
        command = [sys.executable, str(ROOT / name), *arguments, *rounds, "--threads", "2"]
        codes.append(subprocess.run(command, check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
