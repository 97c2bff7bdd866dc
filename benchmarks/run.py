"""Every comparison, one behind the other: prints a table, writes docs/performance.md, fails where a row is under its bar.

    python benchmarks/run.py                      all of it: an hour and a half, SmolLM2 takes most of it
    python benchmarks/run.py --quick              fewer rounds and seeds, small models: ten minutes
    python benchmarks/run.py --only growth.py     one file; the page keeps the others' rows of before

The rows lie in ``.bench/rows.jsonl`` as they came.  The peers' own environments are made there too, once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".bench" / "rows.jsonl"
FILES = (
    *("startup.py", "ppo_specified.py", "ppo_gym.py", "mamba_peers.py", "rollout_hf.py"),
    *("losses_trl.py", "growth.py", "ppo_trl.py", "threads.py"),
)
LONG = ("growth.py", "threads.py")  # left out where there are ten minutes; tests/performance counts what growth times
SHORTER: dict[str, list[str]] = {"ppo_gym.py": ["--seeds", "1"], **{name: [] for name in LONG}}
"""What makes a file quick where it is not --quick."""
PACKAGES = ("torch", "numpy", "numba", "transformers", "trl", "stable-baselines3", "gymnasium")
Row = dict[str, Any]


def rows(name: str, quick: bool) -> list[Row]:
    """The JSON lines of one comparison; what it says besides goes to the screen.

    A file that breaks off gives a row of its own that says so, and the others go on.
    """
    options = SHORTER.get(name, ["--quick"]) if quick else []
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    print(f"── {name} {' '.join(options)}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found: list[Row] = []
    for line in process.stdout:
        if line.startswith("{"):
            found.append({**json.loads(line), "file": name, "quick": quick})
        else:
            print(line, end="", flush=True)
    code = process.wait()
    print(f"   took {time.monotonic() - began:.0f} s", flush=True)
    if code not in (0, 1) or not found:
        print(f"{name} broke off (exit code {process.returncode})")
        found.append({"row": name, "file": name, "quick": quick, "broken": True, "met": False})
    return found


def gemm(size: int = 1024) -> float:
    """Gflop/s of a float32 product on one thread."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _best(lambda: a @ b) / 1e9


def copying(megabytes: int = 256) -> float:
    """GB/s that one thread reads and writes when it copies memory that no cache holds."""
    import torch

    torch.set_num_threads(1)
    a = torch.ones(megabytes * 2**18)
    b = torch.empty_like(a)
    return 2 * 4 * len(a) / _best(lambda: b.copy_(a)) / 1e9


def _best(work: Any) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        work()
        best = min(best, time.process_time() - began)
    return best


def page(found: list[Row]) -> str:
    limit = gemm()
    table = [_cells(row, limit) for row in found]
    return "\n".join(
        [
            "# Performance",
            "",
            "accord beside other libraries on the same work, turn about, one thread, CPU seconds (two threads: wall"
            " seconds). A ratio of 2 means half their seconds, or half their memory. Written by `make bench`; what each"
            " row does stands at the head of its file in `benchmarks/`. Of the limit: the matrix products' operations per"
            " CPU second of the whole step, as a share of what one large product reaches.",
            "",
            "| row | ratio | spread | at least | aim | met | of the limit |",
            "|---|---|---|---|---|---|---|",
            *table,
            "",
            f"{sum(r['met'] for r in found)} of {len(found)} rows met"
            + (" (`--quick`: fewer rounds)" if any(r["quick"] for r in found) else "")
            + f". Machine: {platform.machine()}, {platform.system()}, {os.cpu_count()} cores; on one of them a float32 matrix"
            f" product makes {limit:.0f} Gflop/s, and copying moves {copying():.0f} GB/s. Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
            + ".",
            "",
            "What was tried and did not pay, and why a row is not met: [notebook](notebook.md).",
            "",
        ]
    )


def _cells(row: Row, limit: float) -> str:
    if row.get("broken"):
        return f"| {row['row']} | broke off | | | | **no** | |"
    share = f"{row['gflops'] / limit:.0%}" if "gflops" in row else ""
    return (
        f"| {row['row']} | {row['ratio']:.2f} × | {row['low']:.2f} – {row['high']:.2f} | {row['at_least']:g} | {row['aim']:g} |"
        f" {'yes' if row['met'] else '**no**'} | {share} |"
    )


def merged(new: list[Row], files: list[str]) -> list[Row]:
    """The rows of before, those of ``files`` replaced, in the files' order; kept for the next time."""
    before = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    every = [row for row in before if row["file"] not in files] + new
    every.sort(key=lambda row: FILES.index(row["file"]))
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text("".join(json.dumps(row) + "\n" for row in every))
    return every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and seeds, small models")
    parser.add_argument("--only", choices=FILES, action="append", metavar="FILE", help="one file; may be given again")
    options = parser.parse_args()
    files = options.only or [name for name in FILES if not (options.quick and name in LONG)]
    new: list[Row] = []
    for name in files:
        some = rows(name, options.quick)
        found = merged(some, [name])  # at once: what breaks off later loses nothing
        new += some
        (ROOT / "docs" / "performance.md").write_text(page(found), encoding="utf-8")
    print(f"wrote docs/performance.md; {sum(r['met'] for r in new)} of {len(new)} rows met")
    return 0 if all(r["met"] for r in new) else 1


if __name__ == "__main__":
    sys.exit(main())
