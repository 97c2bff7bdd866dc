"""Start-up time: the cost of ``import accord``, of ``--help``, and of the imports for training.

    python benchmarks/startup.py            median of 5
    python benchmarks/startup.py --quick    median of 3

    import_accord    CPU seconds of ``import torch`` against those of ``import accord``
    help             CPU seconds of ``accord --help`` against the 0.4 seconds that it may take
    import_dpo       CPU seconds of ``from trl import DPOTrainer`` against ``import accord.algorithms.dpo``

Every import in a new process with one thread, alternating runs, the interpreter's start included.  Needs the extra oracles.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

HELP_MAY_TAKE = 0.4
PAIRS = {  # row: ours, theirs, at least, aim
    "import_accord": ("import accord", "import torch", 1 / 1.1, 1.0),
    "import_dpo": ("import accord.algorithms.dpo", "from trl import DPOTrainer", 2.5, 3.0),
}


def spent(code: str) -> tuple[float, float]:
    """CPU and wall seconds of a fresh process that runs one line."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **threads, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{code}: {done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def compare(row: str, rounds: int) -> dict[str, object]:
    ours, theirs, least, aim = PAIRS[row]
    runs = [(spent(ours)[0], spent(theirs)[0]) for _ in range(rounds)]
    ratios = [b / a for a, b in runs]
    middle = {name: statistics.median(run[i] for run in runs) for i, name in enumerate((ours, theirs))}
    ratio = statistics.median(ratios)
    return {
        "row": row, "ratio": ratio, "low": min(ratios), "high": max(ratios), "at_least": round(least, 3), "aim": aim,
        "met": ratio >= least, "cpu_s": middle,
    }  # fmt: skip


def help_line(rounds: int) -> dict[str, object]:
    """CPU seconds, which equal wall seconds on an idle machine: waiting on a busy machine must not affect the result."""
    code = "import sys; sys.argv = ['accord', '--help']; from accord.cli import main; sys.exit(main())"
    runs = [spent(code) for _ in range(rounds)]
    ratios = [HELP_MAY_TAKE / cpu for cpu, _ in runs]
    ratio, (cpu, wall) = statistics.median(ratios), min(runs)
    return {
        "row": "help", "ratio": ratio, "low": min(ratios), "high": max(ratios), "at_least": 1.0, "aim": 1.0,
        "met": ratio >= 1.0, "wall_s": wall, "cpu_s": {"accord --help": cpu},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--quick", action="store_true", help="three runs of each side")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    for code in ("import accord.cli, accord.algorithms.dpo", "from trl import DPOTrainer"):
        spent(code)  # warm-up: compiled files and the disk cache
    lines = [compare("import_accord", rounds), help_line(rounds), compare("import_dpo", rounds)]
    for line in lines:
        cpu = ", ".join(f"{name}: {seconds:.2f}" for name, seconds in line["cpu_s"].items())  # type: ignore[attr-defined]
        wall = f"; wall s {line['wall_s']:.2f}" if "wall_s" in line else ""
        print(
            f"{line['row']:14} {line['ratio']:5.2f} x ({line['low']:.2f} to {line['high']:.2f}; at least"
            f" {line['at_least']:g}, aim {line['aim']:g})  CPU s {cpu}{wall}"
        )
        print(json.dumps(line))
    print(f"{sum(bool(line['met']) for line in lines)} of {len(lines)} rows met")
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
