"""Speed and memory of every trainer on one process and on two, by DDP and FSDP, on the same work.

    python benchmarks/ranks.py              a few minutes on two cores; prints a table in Markdown, which docs/performance.md has
    python benchmarks/ranks.py --only sft   one trainer

A Mamba of width 128 and 4 layers, and a Llama of the same sizes; one thread for each process.  Each trainer runs on random
rows as a stage would; the first steps are not counted.  tokens/s are those of all ranks together by the clock, which other
work on the machine disturbs; "per CPU s" is per CPU second of the busiest process, in which waiting does not count.  MB is
the peak resident memory of the rank with the most.  Losses of the last step must agree to 1e-4 (float32), else the exit
code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("sft", "reward", "dpo", "ppo")
FAMILIES = ("transformer", "mamba")
LAYOUTS = {"1 process": (1, "ddp"), "2 by ddp": (2, "ddp"), "2 by fsdp": (2, "fsdp")}
STEPS, WARM = 14, 4
WORDS = "the sea is blue and a rose is red said the small cat to the old dog who sat by a green door".split()  # noqa: SIM905


def prepare(folder: Path) -> None:
    """A model of each family, a reward model, and rows."""
    import random

    import torch

    from accord.data.tokenizer import small_tokenizer
    from accord.models.open import small_backbone
    from accord.models.reward import RewardModel, ScalarHead

    tokenizer, chance = small_tokenizer(), random.Random(0)
    for family in FAMILIES:
        for kind in ("model", "reward"):
            torch.manual_seed(0)
            place = folder / f"{family}_{kind}"
            place.mkdir()
            backbone = small_backbone(family, 128, 4, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id)
            (RewardModel(backbone, ScalarHead(128), "last") if kind == "reward" else backbone).save(str(place))
            tokenizer.save(place)

    def text(low: int, high: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(low, high)))

    rows = [(text(4, 12), text(10, 30), text(10, 30)) for _ in range(32 * STEPS)]
    files = {
        "sft": [{"prompt": p, "completion": c} for p, c, _ in rows],
        "pairs": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows],
        "prompts": [{"prompt": p} for p, _, _ in rows],
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def settings(kind: str, family: str, folder: Path, out: Path, nproc: int, strategy: str) -> list[str]:
    """The words of the command."""
    words = [
        kind, f"model.base_model={folder}/{family}_model", f"out={out}", f"logs={out}/logs", "device=cpu", "threads=1",
        "log_every=1", "save_every=1000", f"parallel.nproc={nproc}", f"parallel.strategy={strategy}",
        "training.batch_size=32", "training.learning_rate=1e-4",
    ]  # fmt: skip
    if kind == "ppo":
        rollouts = [f"training.iterations={STEPS // 2}", "training.replies=64", "training.num_epochs=1"]
        words += [*rollouts, f"prompts={folder}/prompts.jsonl", f"reward.source={folder}/{family}_reward"]
        return [*words, "sampling.max_new_tokens=48"]
    file = folder / ("sft.jsonl" if kind == "sft" else "pairs.jsonl")
    return [*words, "training.num_epochs=1", f"data.train={file}", "data.heldout_fraction=0"]


def measure(kind: str, family: str, folder: Path, layout: str) -> dict[str, Any]:
    """CPU seconds of a counted step, the last loss and the peak memory of the rank with the most."""
    nproc, strategy = LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        command = [sys.executable, "-m", "accord", *settings(kind, family, folder, out, nproc, strategy)]
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "ACCORD_REGISTRY": str(out / "registry.sqlite"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        peak, lines = 0.0, out / "logs" / kind / "metrics.jsonl"
        seen: dict[int, float] = {}  # the clock when a step was first seen
        used: dict[int, dict[int, float]] = {}  # CPU seconds of each process when a step was first seen
        while process.poll() is None:
            group = processes_of(process.pid)
            peak = max(peak, *(peak_mb(pid) for pid in group))
            for row in _rows(lines) if lines.exists() else []:
                if row["step"] not in used:
                    used[row["step"]] = {pid: cpu_seconds(pid) for pid in group}
                    seen[row["step"]] = time.monotonic()
            time.sleep(0.01)
        text = process.stdout.read() if process.stdout else ""
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{text[-3000:]}")
        rows = _rows(lines)
        first, last = min(step for step in used if step >= WARM), max(used)
        busiest = max(used[last][pid] - used[first].get(pid, 0.0) for pid in used[last])
        losses = {row["step"]: row["loss"] for row in rows}
        clock = (seen[last] - seen[first]) / (last - first)
        return {"clock": clock, "seconds": busiest / (last - first), "loss": losses[max(losses)], "mb": peak}


def _rows(file: Path) -> list[dict[str, float]]:
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # being written
            continue
        if "learning_rate" in row:
            found.append(row)
    return found


def processes_of(pid: int) -> list[int]:
    """A process and all that it and its children started; Linux only."""
    found = [pid]
    for one in found:
        found += [int(c) for c in _text(f"/proc/{one}/task/{one}/children").split()]
    return found


def peak_mb(pid: int) -> float:
    """Peak resident memory; 0 for a process that has ended."""
    lines = _text(f"/proc/{pid}/status").splitlines()
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), default=0.0)


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used; 0 where it has ended."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def tokens_of_a_step(kind: str, folder: Path) -> float:
    """Tokens of an average step; of PPO those of prompts and replies, all of full length."""
    from accord.data.tokenizer import small_tokenizer

    tokenizer = small_tokenizer()
    name = {"sft": "sft", "ppo": "prompts"}.get(kind, "pairs")
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    mean = sum(len(tokenizer.encode(text)) for row in rows for text in row.values()) / len(rows)
    return 32 * (mean + (48 if kind == "ppo" else 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=KINDS, action="append", metavar="KIND", help=", ".join(KINDS))
    kinds = parser.parse_args().only or KINDS
    apart: list[str] = []
    heads = (f"{name}: tokens/s | per CPU s | MB" for name in LAYOUTS)
    lines = [f"| trainer | family | {' | '.join(heads)} |", "|" + "---|" * (2 + 3 * len(LAYOUTS))]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        for kind in kinds:
            tokens = tokens_of_a_step(kind, folder)
            for family in FAMILIES:
                found = {name: measure(kind, family, folder, name) for name in LAYOUTS}
                losses = [row["loss"] for row in found.values()]
                if max(losses) - min(losses) > 1e-4 * max(1.0, abs(losses[0])):
                    apart.append(f"{kind} {family}: {losses}")
                cells = " | ".join(
                    f"{tokens / row['clock']:,.0f} | {tokens / row['seconds']:,.0f} | {row['mb']:,.0f}"
                    for row in found.values()
                )
                lines.append(f"| {kind} | {family} | {cells} |")
                print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    for words in apart:
        print(f"losses differ: {words}")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
