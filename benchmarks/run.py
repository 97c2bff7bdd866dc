"""Run every comparison and print a table; a full run also writes docs/performance.md.

    python benchmarks/run.py                      all of it: an hour and a half, SmolLM2 takes most of it
    python benchmarks/run.py --quick              small models, fewer seeds: ten minutes; writes nothing
    python benchmarks/run.py --quick --record     the same, and keeps its ratios as the recorded figures of quick runs
    python benchmarks/run.py --only growth.py     one file; the page keeps the other files' rows

Exits with 1 if a row falls more than 15 % below its recorded figure in every round, if a comparison fails, or if the
two sides do not compute the same.  The recorded figures are those of docs/performance.md and, for quick runs, whose
work is smaller, of ``benchmarks/quick.json``.  A row below its target is shown as unmet, which alone is not a failure.
A full run writes the raw rows to ``.bench/rows.jsonl``; the environments of other libraries are created in
``.bench`` too, once (minutes).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / ".bench" / "rows.jsonl"
PAGE = ROOT / "docs" / "performance.md"
QUICK = ROOT / "benchmarks" / "quick.json"
ALLOWED = 0.15
"""How far below its recorded figure a row's best round may fall; other work on the machine spoils single rounds."""
FILES = (
    *("startup.py", "ppo_specified.py", "ppo_gym.py", "mamba_peers.py", "rollout_hf.py"),
    *("losses_trl.py", "growth.py", "ppo_trl.py", "threads.py"),
)
LONG = ("growth.py", "ppo_trl.py", "threads.py")  # not part of a quick run; tests/performance counts what growth times
PACKAGES = ("torch", "numpy", "numba", "transformers", "trl", "stable-baselines3", "gymnasium")
Row = dict[str, Any]


def rows(name: str, quick: bool) -> list[Row]:
    """The JSON lines of one comparison; other output goes to the screen.

    If a file fails, a row says so, and the others continue.
    """
    options = ["--quick"] if quick and name not in LONG else []
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options]
    print(f"── {name} {' '.join(options)}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found: list[Row] = []
    for line in process.stdout:
        if line.startswith("{"):
            found.append({**json.loads(line), "file": name})
        else:
            print(line, end="", flush=True)
    code = process.wait()
    print(f"   took {time.monotonic() - began:.0f} s", flush=True)
    if code not in (0, 1) or not found:
        print(f"{name} broke off (exit code {process.returncode})")
        found.append({"row": name, "file": name, "broken": True, "met": False})
    return found


def recorded(page: str) -> dict[str, float]:
    """The ratio of each row in the table of ``page``, the text of docs/performance.md."""
    return {row: float(ratio) for row, ratio in re.findall(r"^\| (\w+) \| ([\d.]+) × \|", page, re.MULTILINE)}


def record_quick(found: list[Row]) -> None:
    """Puts the rows' ratios into ``quick.json``; the figures of other rows stay."""
    figures = json.loads(QUICK.read_text(encoding="utf-8")) if QUICK.exists() else {}
    figures |= {row["row"]: round(row["ratio"], 2) for row in found if not row.get("broken")}
    QUICK.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def fault(row: Row, figure: float | None) -> str:
    """Why a row fails the command, empty if it does not; ``figure`` is its recorded ratio, None for a new row."""
    if row.get("broken"):
        return "broke off"
    if not row["met"] and row["ratio"] >= row["at_least"]:
        return "the sides do not compute the same"
    if figure is not None and row["high"] < (1 - ALLOWED) * figure:
        return f"{1 - row['high'] / figure:.0%} or more below the recorded figure"
    return ""


def table(found: list[Row], figures: dict[str, float]) -> str:
    """The rows with their recorded figures and targets, in Markdown."""
    lines = ["| row | recorded | measured | spread | bar | met | |", "|---|---|---|---|---|---|---|"]
    for row in found:
        name, figure = row["row"], figures.get(row["row"])
        if row.get("broken"):
            lines.append(f"| {name} | | | | | **unmet** | **{fault(row, figure)}** |")
            continue
        known = "new" if figure is None else f"{figure:.2f} ×"
        why = fault(row, figure)
        lines.append(
            f"| {name} | {known} | {row['ratio']:.2f} × | {row['low']:.2f} – {row['high']:.2f} | {row['at_least']:g} |"
            f" {_met(row)} | {f'**{why}**' if why else ''} |"
        )
    return "\n".join(lines)


def _met(row: Row) -> str:
    return "met" if row["met"] else "**unmet**"


def gemm(size: int = 1024) -> float:
    """Gflop/s of a float32 matrix multiplication on one thread."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / _best(lambda: a @ b) / 1e9


def copying(megabytes: int = 256) -> float:
    """GB/s that one thread reads and writes when it copies memory larger than the caches."""
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
    return "\n".join(
        [
            "# Performance",
            "",
            "accord compared with other libraries on the same work, in alternating runs, one thread, CPU seconds (two threads:"
            " wall seconds). A ratio of 2 means half their seconds, or half their memory. Written by `make bench`; each row is"
            " described at the top of its file in `benchmarks/`. Of the limit: matrix-multiplication FLOPs per CPU second of"
            " the whole step, as a share of what one large matrix multiplication reaches.",
            "",
            "| row | ratio | spread | at least | aim | met | of the limit |",
            "|---|---|---|---|---|---|---|",
            *(_cells(row, limit) for row in found),
            "",
            f"{sum(r['met'] for r in found)} of {len(found)} rows met. Machine: {platform.machine()}, {platform.system()},"
            f" {os.cpu_count()} cores; on one of them a float32 matrix multiplication reaches {limit:.0f} Gflop/s, and copying"
            f" {copying():.0f} GB/s. Python {platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
            + ".",
            "",
            "What was tried without success, and why some rows are not met: [notebook](notebook.md).",
            "",
        ]
    )


def sections(text: str) -> str:
    """What follows the first page of figures: from its first second-level heading on, which other commands fill."""
    start = text.find("\n## ")
    return "" if start < 0 else text[start:]


def _cells(row: Row, limit: float) -> str:
    if row.get("broken"):
        return f"| {row['row']} | broke off | | | | **unmet** | |"
    share = f"{row['gflops'] / limit:.0%}" if "gflops" in row else ""
    return (
        f"| {row['row']} | {row['ratio']:.2f} × | {row['low']:.2f} – {row['high']:.2f} | {row['at_least']:g} | {row['aim']:g} |"
        f" {_met(row)} | {share} |"
    )


def merged(new: list[Row], files: list[str]) -> list[Row]:
    """The previous rows, those of ``files`` replaced, in the files' order; saved for the next run."""
    before = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    every = [row for row in before if row["file"] not in files] + new
    every.sort(key=lambda row: FILES.index(row["file"]))
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text("".join(json.dumps(row) + "\n" for row in every))
    return every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, fewer seeds; prints and writes nothing")
    parser.add_argument("--record", action="store_true", help="with --quick: keep the ratios as the recorded figures")
    parser.add_argument("--only", choices=FILES, action="append", metavar="FILE", help="one file; may be given again")
    options = parser.parse_args()
    files = options.only or [name for name in FILES if not (options.quick and name in LONG)]
    if options.record and not options.quick:
        parser.error("--record is for --quick; a full run records in docs/performance.md")
    figures = (
        json.loads(QUICK.read_text(encoding="utf-8")) if options.quick else recorded(PAGE.read_text(encoding="utf-8"))
    )
    new: list[Row] = []
    began = os.times()
    for name in files:
        some = rows(name, options.quick)
        new += some
        if not options.quick:  # immediately, so that a later failure loses nothing
            kept = sections(PAGE.read_text(encoding="utf-8"))
            PAGE.write_text(page(merged(some, [name])) + kept, encoding="utf-8")
    now = os.times()
    cpu = now.children_user + now.children_system - began.children_user - began.children_system
    failed = [row["row"] for row in new if fault(row, figures.get(row["row"]))]
    print(f"\n{table(new, figures)}\n")
    print(
        f"{sum(r['met'] for r in new)} of {len(new)} rows met; took {now.elapsed - began.elapsed:.0f} s, {cpu:.0f} of CPU"
    )
    if not options.quick:
        print("wrote docs/performance.md")
    if options.record:
        record_quick(new)
        print("wrote benchmarks/quick.json")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
