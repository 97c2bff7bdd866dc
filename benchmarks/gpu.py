"""One GPU against plain transformers: SFT, DPO, PPO, sampling and Mamba in bfloat16; the scan's kernels, FSDP of one rank, memory.

    python benchmarks/gpu.py                           at most nine minutes; prints a table, writes gpu.json
    python benchmarks/gpu.py --only sft --only scan    some sections
    python benchmarks/gpu.py --device cpu --small      tiny sizes, to see that every section works without a GPU

Needs torch, transformers and accord, nothing else: no weights, no data, no network, no other file of this folder than
those of ``gpu_sections/``.

Every section is a process of its own with a time limit, so that an error or a hang costs that section alone; the JSON is
written again after each.  Both sides have the same random weights in float32 with products in bfloat16, the same random
texts and the same optimizer (fused AdamW); a step is measured after a warm-up, between synchronizations.

Rows.  tokens/s counts the tokens of the texts, never padding.  MFU is model FLOPs over the time and the device's peak for
dense bfloat16: 6 FLOPs for each matrix weight and token of training, 2 of sampling or reading, and attention's
12 (4) · layers · width · tokens before.  The peak is the data sheet's where ``gpu_sections/machine.py`` has the device,
else that of a matrix multiplication measured here.  "apart" is the largest relative difference of the two sides' first
losses, or of an output or gradient of the scan from its definition in float64.  A row is wrong where "apart" is above
"at most"; then the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LIMIT = 9 * 60  # seconds in all
SECTIONS = ("scan", "sft", "dpo", "rollout", "ppo", "mamba", "fsdp", "memory")


# ------------------------------------------------------------------ one section in a process of its own
def run_section(name: str, device_name: str, small: bool, peak: float) -> list[Row]:
    """The rows of a section, or the facts of the machine for the name ``machine``."""
    import torch
    from gpu_sections import bench, mamba, on_policy, scan, sharding, supervised
    from gpu_sections.machine import machine
    from transformers.utils import logging

    logging.set_verbosity_error()
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    if name == "machine":
        return [machine(device)]
    functions = {
        "scan": scan.scan, "sft": supervised.sft, "dpo": supervised.dpo, "rollout": on_policy.rollout,
        "ppo": on_policy.ppo, "mamba": mamba.mamba, "fsdp": sharding.fsdp, "memory": sharding.memory,
    }  # fmt: skip
    return functions[name](bench.Bench(device, bench.SMALL if small else bench.LARGE, peak))


def section(name: str, options: argparse.Namespace, peak: float, seconds: float) -> list[Row]:
    """Runs a section in a process of its own; an error or the end of its time is a row."""
    words = [sys.executable, __file__, "--section", name, "--device", options.device, "--peak", str(peak)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [*words, *(["--small"] if options.small else [])],
            capture_output=True, text=True, env=environment, timeout=max(1.0, seconds), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [{"row": name, "error": f"not finished after {seconds:.0f} s"}]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [{"row": name, "error": last, "traceback": done.stderr[-4000:]}]
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


# ------------------------------------------------------------------ the table
def is_wrong(row: Row) -> bool:
    """Whether a row failed or its sides do not compute the same; NaN counts as wrong."""
    return "error" in row or ("at_most" in row and not row.get("apart", float("nan")) <= row["at_most"])


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    head = ("row", "accord tokens/s", "plain tokens/s", "ratio", "accord MFU", "plain MFU", "accord GiB", "plain GiB")
    lines = [f"| {' | '.join((*head, 'apart', 'at most'))} |", "|" + "---|" * (len(head) + 2)]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['row']} | **{row['error'][:100]}** |" + " |" * len(head))
            continue
        ours, plain = row.get("ours_tokens_per_s"), row.get("plain_tokens_per_s")
        memory = row.get("plain_gib", row.get("predicted_gib"))
        note = " predicted" if "predicted_gib" in row else ""
        cells = [
            row["row"], _number(ours, ",.0f"), _number(plain, ",.0f"),
            _number(ours / plain if ours and plain else None, ".2f", " ×"),
            _number(row.get("ours_mfu"), ".1%"), _number(row.get("plain_mfu"), ".1%"),
            _number(row.get("ours_gib"), ".2f"), _number(memory, ".2f", note),
            ("**{}**" if is_wrong(row) else "{}").format(_number(row.get("apart"), ".1e")),
            _number(row.get("at_most"), ".0e"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default cuda)")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes: every section in seconds, figures mean nothing"
    )
    parser.add_argument("--only", choices=SECTIONS, action="append", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", default="gpu.json", metavar="FILE", help="the JSON file (default gpu.json)")
    parser.add_argument("--section", choices=("machine", *SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        print("\n" + json.dumps(run_section(options.section, options.device, options.small, options.peak)))
        return 0
    end = time.monotonic() + LIMIT
    (found,) = section("machine", options, 1.0, 90)
    if "error" in found:
        print(f"{options.device}: {found['error']}", file=sys.stderr)
        return 1
    print(
        ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in found.items()
        )
    )
    rows: list[Row] = []
    names = options.only or SECTIONS
    for number, name in enumerate(names):
        began = time.monotonic()
        # a section may take what the earlier ones left of their shares, and twice its own
        share = (end - began) / (len(names) - number)
        some = section(name, options, found["peak_flops"], min(2 * share, end - began - 5))
        rows += some
        print(
            f"{name}: {time.monotonic() - began:.0f} s", *(row["error"] for row in some if "error" in row), flush=True
        )
        content = {"machine": found, "small": options.small, "rows": rows}
        Path(options.out).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\nwrote {options.out}")
    wrong = [row["row"] for row in rows if is_wrong(row)]
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
