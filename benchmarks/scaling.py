"""What asynchronous rollouts do to learning, by age of the weights and correction; fills docs/scaling.md.

    python benchmarks/scaling.py learning                      lags 0, 1, 4, 16, every correction, seeds 0, 1, 2: about an hour
    python benchmarks/scaling.py learning --seeds 0 --lags 0 4 fewer
    python benchmarks/scaling.py learning --report             only the page, from the figures of the last run

The small world is made once (``configs/pipeline.yaml`` up to the reward model), then PPO is trained on it with
``rollout.lag``: one process samples every rollout from the weights of so many rollouts before, which is exactly what a
worker of that age would send.  A pipeline is written to ``.bench/scaling/`` and run by ``accord run``, so that a run that
was stopped goes on where it was.  Figures go to ``.bench/scaling/learning.json``.

Seconds are CPU seconds on one thread, which other work on the machine does not disturb: sampling (with scoring) and training
of a rollout are timed apart in a synchronous run; an asynchronous one with a worker of equal speed takes the longer of the
two for a rollout.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench" / "scaling"
PAGE = ROOT / "docs" / "scaling.md"
LAGS = (0, 1, 4, 16)
KINDS = ("none", "token_tis", "sequence_tis", "vtrace", "decoupled")
WORLD = ("demo", "base", "sft", "pairs", "reward")


# ------------------------------------------------------------------------------------- the pipeline
def cells(lags: Sequence[int], kinds: Sequence[str], seeds: Sequence[int]) -> list[tuple[int, str, int]]:
    """(lag, correction, seed) of every run; without a lag there is nothing to correct, so one correction stands for all."""
    pairs = [(lag, kind) for lag in lags for kind in (kinds if lag else kinds[:1])]
    return [(lag, kind, seed) for seed in seeds for lag, kind in pairs]


def name_of(cell: tuple[int, str, int]) -> str:
    lag, kind, seed = cell
    return f"lag{lag}_{kind}_seed{seed}"


def pipeline(chosen: Sequence[tuple[int, str, int]], folder: Path) -> dict[str, Any]:
    """The small world's stages as in configs/pipeline.yaml, a PPO stage for each cell, and their comparison."""
    base = yaml.safe_load((ROOT / "configs" / "pipeline.yaml").read_text(encoding="utf-8"))
    stages: dict[str, Any] = {name: dict(base["stages"][name]) for name in WORLD}
    for entry in stages.values():
        if "config" in entry:
            entry["config"] = str(ROOT / "configs" / entry["config"])
    template = base["stages"]["ppo_lm"]
    for lag, kind, seed in chosen:
        settings = {"rollout.lag": lag, "correction.kind": kind, "seed": seed, "threads": 1}
        stages[name_of((lag, kind, seed))] = {
            "kind": "ppo",
            "inputs": template["inputs"],
            "set": {**template["set"], **settings},
        }
    compare = dict(base["stages"]["compare"])
    compare["set"] = {**compare["set"], "models": {"sft": "sft", **{name_of(cell): name_of(cell) for cell in chosen}}}
    stages["compare"] = compare
    return {"seed": 0, "out": str(folder / "out"), "logs": str(folder / "logs"), "threads": 1, "stages": stages}


def train(chosen: Sequence[tuple[int, str, int]], folder: Path) -> None:
    """Runs what has not been run yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "learning.yaml"
    path.write_text(yaml.safe_dump(pipeline(chosen, folder), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "accord", "run", str(path)]
    if code := subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode:
        raise SystemExit(f"the pipeline {path} ended with exit code {code}")


# ------------------------------------------------------------------------------------- figures
def figures(chosen: Sequence[tuple[int, str, int]], folder: Path) -> list[dict[str, Any]]:
    """One row for each run."""
    results = json.loads((folder / "out" / "compare" / "results.json").read_text(encoding="utf-8"))
    rows = []
    for cell in chosen:
        lag, kind, seed = cell
        name = name_of(cell)
        lines = (folder / "logs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rollouts = [row for line in lines if "rollout/score" in (row := json.loads(line))]
        ess = [row["rollout/ess"] for row in rollouts if "rollout/ess" in row]
        replies = [row["rollout/ess_replies"] for row in rollouts if "rollout/ess_replies" in row]
        rows.append(
            {
                "lag": lag,
                "correction": kind,
                "seed": seed,
                "gain": results[name]["gain_vs_sft"],
                "gain_ci95": results[name]["gain_ci95"],
                "kl": results[name]["kl_mean"],
                "training_scores": [row["rollout/score"] for row in rollouts],
                "ess": mean(ess) if ess else 1.0,
                "ess_replies": mean(replies) if replies else 1.0,
                "rollouts": len(rollouts),
            }
        )
    return rows


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        result = function(*arguments, **named)
        seconds.append(time.process_time() - began)
        return result

    return call


def rollout_seconds(folder: Path, rollouts: int = 6) -> dict[str, float]:
    """CPU seconds of one rollout's sampling and of its training, in a short synchronous run in this process."""
    import torch

    from accord import stages
    from accord.rollout.text_source import TextSource
    from accord.training.updater import Updater

    shutil.rmtree(folder / "timing", ignore_errors=True)  # a finished run would be left as it is
    torch.set_num_threads(1)
    collect, step = TextSource.collect, Updater.step
    sampling: list[float] = []
    training: list[float] = []
    TextSource.collect = timed(collect, sampling)  # type: ignore[method-assign]
    Updater.step = timed(step, training)  # type: ignore[method-assign]
    template = yaml.safe_load((ROOT / "configs" / "pipeline.yaml").read_text(encoding="utf-8"))["stages"]["ppo_lm"]
    out = folder / "out"
    values = {
        **template["set"],
        "training.iterations": rollouts,
        "model.base_model": str(out / "sft"),
        "reward.source": str(out / "reward"),
        "prompts": str(out / "demo"),
        "threads": 1,
        "name": "timing",
        "out": str(folder / "timing"),
        "logs": str(folder / "timing"),
    }
    try:
        stages.ppo(**values)
    finally:
        TextSource.collect, Updater.step = collect, step  # type: ignore[method-assign]
    first = len(training) // rollouts  # the first rollout compiles kernels
    return {"sampling": mean(sampling[1:]), "training": sum(training[first:]) / (rollouts - 1)}


# ------------------------------------------------------------------------------------- the page
def summary(rows: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> str:
    """The table: means over seeds, with the smallest and the largest gain."""
    both, longer = seconds["sampling"] + seconds["training"], max(seconds["sampling"], seconds["training"])
    lines = [
        "| lag | correction | gain in gold over SFT | each seed | per 1000 replies | per minute | KL, nats | ESS, tokens"
        " | ESS, replies |",
        "|---:|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["lag"], row["correction"]), []).append(row)
    for (lag, kind), found in sorted(groups.items(), key=lambda item: (item[0][0], KINDS.index(item[0][1]))):
        gain = mean(row["gain"] for row in found)
        replies = found[0]["rollouts"] * 64
        minutes = found[0]["rollouts"] * (longer if lag else both) / 60
        each = ", ".join(f"{row['gain']:+.2f}" for row in sorted(found, key=lambda row: row["seed"]))
        lines.append(
            f"| {lag} | {kind if lag else '-'} | {gain:+.3f} | {each} | {gain / replies * 1000:+.2f} | {gain / minutes:+.2f} |"
            f" {mean(row['kl'] for row in found):.2f} | {mean(row['ess'] for row in found):.3f} |"
            f" {mean(row['ess_replies'] for row in found):.3f} |"
        )
    seeds = sorted({row["seed"] for row in rows})
    widths = [(row["gain_ci95"][1] - row["gain_ci95"][0]) / 2 for row in rows]
    lines += [
        "",
        f"PPO seeds {', '.join(map(str, seeds))} on one small world (seed 0); {rows[0]['rollouts']} rollouts of 64 replies. A"
        f" single gain has a 95 % interval of about ± {mean(widths):.2f} over prompts. A rollout takes"
        f" {seconds['sampling']:.2f} CPU s of sampling and {seconds['training']:.2f} CPU s of training on one thread;"
        " per minute: their sum without a lag, the longer of the two with one (a worker and a learner of equal speed, and"
        " nothing for transport).",
    ]
    return "\n".join(lines)


def learning(options: argparse.Namespace) -> None:
    stored = options.folder / "learning.json"
    if not options.report:
        chosen = cells(options.lags, options.corrections, options.seeds)
        train(chosen, options.folder)
        found = {"rows": figures(chosen, options.folder), "seconds": rollout_seconds(options.folder)}
        stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not stored.exists():
        raise SystemExit(f"{stored} is not there; run without --report first.")
    found = json.loads(stored.read_text(encoding="utf-8"))
    table = summary(found["rows"], found["seconds"])
    sys.path.insert(0, str(PAGE.parent))
    from fill import put

    put(table, PAGE, "learning")
    print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    part = commands.add_parser("learning", help="learning per sample and per second, by lag and correction")
    part.add_argument("--lags", type=int, nargs="+", default=LAGS)
    part.add_argument("--corrections", nargs="+", choices=KINDS, default=KINDS)
    part.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    part.add_argument("--folder", type=Path, default=FOLDER, help="for the world, the runs and the figures")
    part.add_argument("--report", action="store_true", help="only render the page")
    part.set_defaults(act=learning)
    options = parser.parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
