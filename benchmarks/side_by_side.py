"""Two sides of a comparison in separate, alternating processes; their figures as rows of a table and of JSON."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"
}  # fmt: skip
"""glibc's allocator set to retain freed memory: the environment of rows called tuned, for both sides."""
QUIET = {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}  # fmt: skip
Figures = dict[str, Any]


def run(arguments: Sequence[str], threads: int, tuned: bool, python: str = sys.executable) -> Figures:
    """The JSON on the last line that a Python script with arguments prints."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment = {**os.environ, **counts, **QUIET, **(KEEP_MEMORY if tuned else {})}
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}:\n{done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def losses_apart(runs: Sequence[tuple[Figures, Figures]]) -> float:
    """The largest relative difference of two sides' losses, all steps of all rounds."""
    pairs = [pair for ours, theirs in runs for pair in zip(ours["losses"], theirs["losses"], strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def row(
    name: str, runs: Sequence[tuple[Figures, Figures]], key: str, at_least: float, aim: float, **more: Any
) -> Figures:
    """Theirs over ours of the figure ``key``: median, smallest and largest over the rounds, and whether it is enough."""
    ratios = [theirs[key] / ours[key] for ours, theirs in runs]
    ratio = statistics.median(ratios)
    middle = {who: statistics.median(run[i][key] for run in runs) for i, who in enumerate(("accord", "peer"))}
    found = {"row": name, "ratio": ratio, "low": min(ratios), "high": max(ratios), key: middle, **more}
    return {**found, "at_least": at_least, "aim": aim, "met": ratio >= at_least}


def say(line: Mapping[str, Any], note: str = "") -> None:
    """Prints a row as text, then as JSON."""
    print(
        f"{line['row']:32} {line['ratio']:5.2f} x ({line['low']:.2f} to {line['high']:.2f}; at least"
        f" {line['at_least']}, aim {line['aim']}) {note}"
    )
    print(json.dumps(line), flush=True)


def finish(lines: Sequence[Mapping[str, Any]]) -> int:
    """The last line, and the exit code."""
    met = sum(bool(line["met"]) for line in lines)
    print(f"{met} of {len(lines)} rows met")
    return 0 if met == len(lines) else 1


def threads() -> int:
    """The number of threads, as set by the parent process."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def now() -> float:
    """CPU seconds of this process, or wall seconds where it has several threads: waiting threads use CPU time too."""
    return time.process_time() if threads() == 1 else time.perf_counter()
