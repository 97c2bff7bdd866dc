"""A cost model of asynchronous PPO: fitted to its parts on this machine, compared with what runs here, then carried to GPUs.

    python benchmarks/scaling_model.py measure    runs PPO on Ray with 1 and 2 workers at several ages: ten minutes on two cores
    python benchmarks/scaling_model.py report     simulates, and writes the tables into docs/scaling.md from the last measurement

``measure`` takes the parts (a chunk, a rollout's optimizer steps, publishing, the rest) from one synchronous run with one
worker, and the other runs are only predicted.  Figures go to ``.bench/scaling/model.json``.

The simulation is one of discrete events, with the rules of ``accord/distributed/ray/source.py``: at rollout k, chunks below
(k + max_staleness + 1) · C may be sampled, each with the newest weights when it begins; those that would be too old for the
next rollout are trained on first and waited for (with at most C workers; with more, some go first earlier).  Tasks share
``cores`` evenly where there are fewer than tasks.

GPUs are not measured: their constants are those of NVIDIA's H100 SXM data sheet, and the shares of them that are reached
are assumptions.  Each is doubled and halved, and what is recommended is given as a range.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / ".bench" / "scaling" / "model.json"
PAGE = ROOT / "docs" / "scaling.md"
RUNS = ((1, 0), (1, 1), (2, 0), (2, 1), (2, 4))
"""(workers, max_staleness); the parts are taken from the first."""


# ------------------------------------------------------------------------------------- the simulation
@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of each part of a rollout."""

    chunk: float
    """A worker's sampling and scoring of one chunk, on average."""
    update: float
    """The learner's optimizer steps on a rollout."""
    publish: float = 0.0
    """From the end of the steps until workers can have the new weights."""
    overhead: float = 0.0
    """Of the learner for each chunk: taking it out of the object store, joining it."""
    variation: float = 0.0
    """Standard deviation of a chunk's seconds over their mean (log-normal)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Who does the work, and how far workers may be ahead."""

    workers: int
    max_staleness: int
    chunks: int
    """Chunks of a rollout."""
    cores: float = math.inf
    """Tasks that run at full speed side by side."""


@dataclass(slots=True)
class Outcome:
    """What a simulation found, without its first rollouts."""

    seconds: float
    """Of a rollout."""
    learner_idle: float
    worker_idle: float
    """Shares of the time."""
    ages: list[int] = field(default_factory=list)
    """In rollouts, of every chunk that was trained on."""
    most_open: int = 0
    """Chunks that were under way or waiting at once, at most."""


@dataclass(slots=True)
class _Task:
    """Work in progress: the learner's, or that of a worker on one chunk."""

    left: float
    worker: int = -1
    chunk: int = -1
    version: int = 0


def simulate(parts: Parts, layout: Layout, rollouts: int = 60, warm: int = 10, seed: int = 0) -> Outcome:
    """``rollouts`` rollouts, of which the first ``warm`` are not counted."""
    rng, per, bound = random.Random(seed), layout.chunks, layout.max_staleness
    sigma = math.sqrt(math.log1p(parts.variation**2))
    clock, version, current, next_chunk = 0.0, 0, 0, 0
    arrived: list[tuple[int, int]] = []  # (chunk, version), in the order of arrival
    free, sampling = list(range(layout.workers)), list[_Task]()
    learner: _Task | None = None
    busy_learner, busy_workers, started = 0.0, 0.0, 0.0
    outcome = Outcome(0.0, 0.0, 0.0)

    def choose() -> list[tuple[int, int]]:
        oldest = current - bound
        if any(task.version <= oldest for task in sampling):
            return []
        first = [c for c in arrived if c[1] <= oldest]
        chosen = [*first, *(c for c in arrived if c[1] > oldest)][:per]
        return chosen if len(chosen) == per else []

    while current < rollouts:
        allowed = (current + bound + 1) * per
        while free and next_chunk < allowed:
            draw = rng.lognormvariate(-sigma * sigma / 2, sigma) if sigma else 1.0
            sampling.append(_Task(parts.chunk * draw, free.pop(), next_chunk, version))
            next_chunk += 1
        if learner is None and (chosen := choose()):
            arrived = [c for c in arrived if c not in chosen]
            if current >= warm:
                outcome.ages += [current - v for _, v in chosen]
            learner = _Task(parts.update + parts.publish + per * parts.overhead)
        outcome.most_open = max(outcome.most_open, len(sampling) + len(arrived))
        tasks = [*sampling, *([learner] if learner else [])]
        pace = min(1.0, layout.cores / len(tasks))
        step = min(task.left for task in tasks) / pace
        if current >= warm:
            busy_learner += step * (learner is not None)
            busy_workers += step * len(sampling)
        clock += step
        for task in tasks:
            task.left -= step * pace
        for task in [t for t in sampling if t.left <= 1e-12]:
            sampling.remove(task)
            free.append(task.worker)
            arrived.append((task.chunk, task.version))
        if learner is not None and learner.left <= 1e-12:
            learner, current, version = None, current + 1, version + 1
            if current == warm:
                started = clock
    length = clock - started
    outcome.seconds = length / (rollouts - warm)
    outcome.learner_idle = max(0.0, 1 - busy_learner / length)
    outcome.worker_idle = max(0.0, 1 - busy_workers / length / layout.workers)
    return outcome


# ------------------------------------------------------------------------------------- this machine
def run_here(workers: int, max_staleness: int, folder: Path, iterations: int) -> list[dict[str, float]]:
    """The metrics of the rollouts of one PPO run on Ray; the first two are left out."""
    out = folder / f"{workers}_{max_staleness}"
    words = [
        "ppo", f"model.base_model={folder}/model", f"reward.source={folder}/reward", f"prompts={folder}/prompts.jsonl",
        f"out={out}", f"logs={out}/logs", "device=cpu", "threads=1", "log_every=1", "save_every=100000",
        "model.policy=language", "sampling.max_new_tokens=48", f"training.iterations={iterations}",
        "training.replies=64", "training.samples_per_prompt=4", "training.batch_size=32", "training.num_epochs=1",
        "rollout.engine=ray", f"rollout.workers={workers}", f"rollout.max_staleness={max_staleness}",
        "rollout.chunk_prompts=8",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCORD_REGISTRY": str(out / "registry.sqlite")}
    done = subprocess.run([sys.executable, "-m", "accord", *words], cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"PPO with {workers} workers ended with exit code {done.returncode}")
    lines = (out / "logs" / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for line in lines if "ray/wait_seconds" in (row := json.loads(line))][2:]


def measure(iterations: int) -> dict[str, Any]:
    """The rows of every run, and when they were made."""
    from benchmarks.ranks import prepare

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        (folder / "transformer_model").rename(folder / "model")
        (folder / "transformer_reward").rename(folder / "reward")
        runs = [
            {"workers": w, "max_staleness": s, "rows": run_here(w, s, folder, iterations), "load": os.getloadavg()[0]}
            for w, s in RUNS
        ]
    found = {"runs": runs, "cores": os.cpu_count(), "chunks": 2, "made": time.strftime("%Y-%m-%d")}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def fit(rows: Sequence[dict[str, float]], chunks: int) -> Parts:
    """The parts of a synchronous run with one worker, which do not overlap: the rest of the clock goes to the chunks."""
    sampling = [row["ray/worker_seconds"] / chunks for row in rows]
    waited = mean(row["ray/wait_seconds"] for row in rows)
    return Parts(
        chunk=mean(sampling),
        update=mean(row["ray/update_seconds"] for row in rows),
        publish=mean(row["ray/publish_seconds"] for row in rows),
        overhead=max(0.0, waited / chunks - mean(sampling)),
        variation=pstdev(sampling) / mean(sampling),
    )


# ------------------------------------------------------------------------------------- GPUs, simulated
@dataclass(frozen=True, slots=True)
class Gpu:
    """Constants of one GPU and its links, and the shares of them that are reached."""

    flops: float = 989e12
    """Dense bfloat16 operations a second: NVIDIA H100 SXM data sheet."""
    memory: float = 3.35e12
    """Bytes a second of its HBM3: the same data sheet."""
    link: float = 50e9
    """Bytes a second between machines for each GPU: NDR InfiniBand, 400 Gbit/s."""
    training_share: float = 0.4
    """Of ``flops``, reached in training; an assumption."""
    decoding_share: float = 0.5
    """Of ``memory``, reached while tokens are generated one by one; an assumption."""
    chunk_overhead: float = 0.005
    """Seconds of the learner for each chunk; measured here (``overhead``)."""


@dataclass(frozen=True, slots=True)
class Work:
    """A rollout of a language model."""

    parameters: float
    replies: int = 1024
    tokens: int = 1024
    """Of a reply."""
    prompt: int = 256
    steps: int = 4
    """Optimizer steps on a rollout, in one pass over it."""
    cache: float = 0.0
    """Bytes of keys and values of one token."""


MODELS = {
    "1B": Work(
        1.2e9, cache=2 * 16 * 8 * 64 * 2
    ),  # the sizes of Llama 3.2 1B: 16 layers, 8 heads of 64 for keys and values
    "7B": Work(7.2e9, cache=2 * 32 * 8 * 128 * 2),  # Mistral 7B: 32 layers, 8 heads of 128
}


def parts_on(gpu: Gpu, work: Work, workers: int, learners: int) -> dict[str, float]:
    """Seconds of the parts of a rollout on ``workers`` GPUs that sample and ``learners`` that train."""
    batch = work.replies / workers  # replies that one GPU generates together
    context = work.prompt + work.tokens / 2
    step = (2 * work.parameters + batch * context * work.cache) / (gpu.memory * gpu.decoding_share)
    step = max(step, batch * 2 * work.parameters / (gpu.flops * gpu.training_share))
    tokens = work.replies * (work.tokens + work.prompt)
    reading = 2 * 2 * work.parameters * tokens / workers / (gpu.flops * gpu.training_share)  # reward and reference
    training = (6 + 2) * work.parameters * 2 * tokens / learners / (gpu.flops * gpu.training_share)  # policy and critic
    reduce = work.steps * 2 * 2 * 2 * work.parameters / gpu.link * (learners > 1)  # both models' gradients, ring
    return {
        "sampling": step * work.tokens,
        "scoring": reading,
        "training": training,
        "all-reduce": reduce,
        "publishing": 2 * work.parameters / gpu.link,
        "chunks": gpu.chunk_overhead * workers,
    }


def simulated(gpu: Gpu, work: Work, workers: int, learners: int, max_staleness: int, variation: float) -> Outcome:
    """A run in which each worker samples one chunk of a rollout."""
    seconds = parts_on(gpu, work, workers, learners)
    parts = Parts(
        seconds["sampling"] + seconds["scoring"],
        seconds["training"] + seconds["all-reduce"],
        seconds["publishing"],
        gpu.chunk_overhead,
        variation,
    )
    return simulate(parts, Layout(workers, max_staleness, workers), rollouts=14, warm=4)


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest layout of a number of GPUs at one age."""

    workers: int
    seconds: float
    learner_idle: float
    worker_idle: float
    bottleneck: str


def best(gpu: Gpu, work: Work, gpus: int, max_staleness: int, variation: float) -> Choice:
    """The fastest number of workers, among eighths of the GPUs."""
    shares = sorted({max(1, min(gpus - 1, round(gpus * eighth / 8))) for eighth in range(1, 8)})
    found = {n: simulated(gpu, work, n, gpus - n, max_staleness, variation) for n in shares}
    workers = min(found, key=lambda n: found[n].seconds)
    outcome, seconds = found[workers], parts_on(gpu, work, workers, gpus - workers)
    return Choice(
        workers,
        outcome.seconds,
        outcome.learner_idle,
        outcome.worker_idle,
        max(seconds, key=lambda name: seconds[name]),
    )


def ranges(
    gpu: Gpu, work: Work, gpus: int, max_staleness: int, variation: float
) -> tuple[list[int], list[float], list[str]]:
    """The best workers, seconds and bottlenecks where each constant is halved and doubled, one at a time."""
    found = [
        best(
            replace(gpu, **{constant.name: getattr(gpu, constant.name) * factor}), work, gpus, max_staleness, variation
        )
        for constant in fields(Gpu)
        for factor in (0.5, 2.0)
    ]
    return [c.workers for c in found], [c.seconds for c in found], [c.bottleneck for c in found]


# ------------------------------------------------------------------------------------- the page
def machine_tables(found: dict[str, Any]) -> tuple[list[str], Parts]:
    """What was measured here, the parts, and what they predict."""
    runs, chunks = found["runs"], found["chunks"]
    parts = fit(runs[0]["rows"], chunks)
    sent = mean(row["ray/received_mb"] for row in runs[0]["rows"]) / chunks * 1e3
    weights = mean(row["ray/published_mb"] for row in runs[0]["rows"])
    lines = [
        f"Measured on {found['cores']} cores ({found['made']}), a Llama of width 128 and 4 layers, 64 replies of up to 48 tokens"
        f" in {chunks} chunks a rollout. The parts, from one worker in lockstep: a chunk {parts.chunk:.2f} s"
        f" (± {parts.variation:.0%}), optimizer steps {parts.update:.2f} s, publishing {parts.publish * 1e3:.0f} ms for"
        f" {weights:.1f} MB of weights; Ray adds {parts.overhead * 1e3:.0f} ms and {sent:.0f} kB to a chunk. The other rows are"
        " predicted from these parts alone; tasks share the cores.",
        "",
        "| workers | max_staleness | s a rollout: measured | predicted | learner idle: measured | predicted |"
        " workers idle: measured | predicted |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        seconds, learner, idle = observed(run["rows"], run["workers"])
        layout = Layout(run["workers"], run["max_staleness"], chunks, float(found["cores"]))
        predicted = simulate(parts, layout, rollouts=60)
        lines.append(
            f"| {run['workers']} | {run['max_staleness']} | {seconds:.2f} | {predicted.seconds:.2f} | {learner:.0%} |"
            f" {predicted.learner_idle:.0%} | {idle:.0%} | {predicted.worker_idle:.0%} |"
        )
    return lines, parts


def observed(rows: Sequence[dict[str, float]], workers: int) -> tuple[float, float, float]:
    """Seconds of a rollout, and the idle shares of the learner and of a worker."""
    seconds = mean(row["ray/wait_seconds"] + row["ray/publish_seconds"] + row["ray/update_seconds"] for row in rows)
    waiting = mean(row["ray/wait_seconds"] for row in rows) / seconds
    sampling = mean(row["ray/worker_seconds"] for row in rows) / workers / seconds
    return seconds, waiting, max(0.0, 1 - sampling)


def gpu_table(gpu: Gpu, variation: float) -> list[str]:
    """The choices for 8, 64 and 512 GPUs."""
    lines = [
        "**Simulated, not measured.** H100 SXM by its data sheet (989 TFLOP/s dense bfloat16, 3.35 TB/s), 400 Gbit/s for each"
        " GPU; 40 % of the operations reached in training and 50 % of the memory's bandwidth in decoding are assumptions."
        " Rollouts of 1,024 replies of 1,024 tokens, four steps, policy and critic of the same size. In brackets the range where"
        " each constant is halved and doubled, one at a time.",
        "",
        "| model | GPUs | max_staleness | workers | s a rollout | against 0 | learner idle | workers idle | longest part |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, work in MODELS.items():
        for gpus in (8, 64, 512):
            first = 0.0
            for age in (0, 1, 2, 4):
                choice = best(gpu, work, gpus, age, variation)
                first = first or choice.seconds
                workers, seconds, parts = ranges(gpu, work, gpus, age, variation) if age in (0, 1) else ([], [], [])
                at = f" [{min(workers)}–{max(workers)}]" if workers else ""
                span = f" [{min(seconds):.1f}–{max(seconds):.1f}]" if seconds else ""
                others = sorted(set(parts) - {choice.bottleneck})
                longest = choice.bottleneck + (f" ({', '.join(others)})" if others else "")
                lines.append(
                    f"| {name} | {gpus} | {age} | {choice.workers}{at} | {choice.seconds:.1f}{span} |"
                    f" {first / choice.seconds:.2f}× | {choice.learner_idle:.0%} | {choice.worker_idle:.0%} | {longest} |"
                )
    return lines


def report() -> None:
    """Fills the part ``model`` of the page."""
    if not FIGURES.is_file():
        raise SystemExit(f"{FIGURES}: no such file; run 'python benchmarks/scaling_model.py measure' first.")
    lines, parts = machine_tables(json.loads(FIGURES.read_text(encoding="utf-8")))
    gpu = replace(Gpu(), chunk_overhead=parts.overhead or Gpu().chunk_overhead)
    content = "\n".join([*lines, "", *gpu_table(gpu, 0.2)])
    sys.path.insert(0, str(PAGE.parent))
    from fill import put

    put(content, PAGE, "model")
    print(content)
    print(f"\nparts: {asdict(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "report"))
    parser.add_argument("--iterations", type=int, default=12, help="rollouts of each run (default 12, two not counted)")
    options = parser.parse_args()
    if options.what == "measure":
        measure(options.iterations)
    report()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
