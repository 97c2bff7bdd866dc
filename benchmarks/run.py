"""Every comparison, one behind the other: prints a table, writes docs/performance.md, fails where a row is under its bar.

python benchmarks/run.py            all of it (half an hour)
python benchmarks/run.py --quick    fewer rounds and seeds (ten minutes)
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "full": [
        ["losses_trl.py"], ["losses_trl.py", "--tuned"], ["ppo_gym.py"],
    ],
    "quick": [
        ["losses_trl.py", "--rounds", "1"], ["losses_trl.py", "--rounds", "1", "--tuned"], ["ppo_gym.py", "--seeds", "3"],
    ],
}  # fmt: skip


def rows(command: list[str]) -> list[dict[str, Any]]:
    """The JSON lines of one comparison; what it says besides goes to the screen."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    found = []
    for line in process.stdout:
        if line.startswith("{"):
            found.append(json.loads(line))
        else:
            print(line, end="", flush=True)
    if process.wait() not in (0, 1) or not found:
        raise SystemExit(f"{' '.join(command)} ended without a row")
    return found


def gemm(size: int = 1024) -> float:
    """Gflop/s of a float32 product on one thread."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        a @ b
        best = min(best, time.process_time() - began)
    return 2 * size**3 / best / 1e9


def page(found: list[dict[str, Any]], options: str) -> str:
    names = ("torch", "numpy", "numba", "transformers", "trl", "stable-baselines3", "gymnasium")
    table = [
        f"| {r['row']} | {r['ratio']:.1f} × | {r['low']:.1f} – {r['high']:.1f} | {r['at_least']} | {r['aim']} |"
        f" {'yes' if r['met'] else '**no**'} |"
        for r in found
    ]
    return "\n".join(
        [
            "# Performance",
            "",
            "accord beside other libraries on the same work, in one run, turn about, one thread, CPU seconds. A ratio of 2"
            " means half their seconds. Written by `make bench`; what each row does stands at the head of its file in"
            " `benchmarks/`.",
            "",
            "| row | ratio | spread | at least | aim | met |",
            "|---|---|---|---|---|---|",
            *table,
            "",
            f"{sum(r['met'] for r in found)} of {len(found)} rows met. Command: `python benchmarks/run.py{options}`."
            f" Machine: {platform.machine()}, {platform.system()}, one core of a float32 matrix product at"
            f" {gemm():.0f} Gflop/s. Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in names)
            + ".",
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and seeds")
    quick = parser.parse_args().quick
    found = [row for command in COMMANDS["quick" if quick else "full"] for row in rows(command)]
    (ROOT / "docs" / "performance.md").write_text(page(found, " --quick" if quick else ""), encoding="utf-8")
    print(f"wrote docs/performance.md; {sum(r['met'] for r in found)} of {len(found)} rows met")
    return 0 if all(r["met"] for r in found) else 1


if __name__ == "__main__":
    sys.exit(main())
