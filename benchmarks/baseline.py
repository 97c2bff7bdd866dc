"""Record exact numbers of every trainer, to show that a change of the code changed none of them.

    python benchmarks/baseline.py before.json                          record: three to five minutes
    python benchmarks/baseline.py after.json --against before.json     record and compare; exit 1 if a number differs
    python benchmarks/baseline.py before.json --pipeline checkpoints/rlhf     also the results.json of a finished pipeline

Before a refactoring, record on the old code; after it, compare on the new code, on the same machine with the same
packages.  The comparison is bit-exact: each number that differs or is missing is reported on a line.  Numbers that are only in the
new recording are counted and do not fail the comparison.

Everything goes through the command line (``python -m accord.cli``), one thread, in a temporary folder, so that it works
the same whatever the internals of the code.  Settings that affect a result are written out here and not left to defaults.

What is recorded:

* every metric of every optimizer step of base, sft, reward (features, language), dpo, and ppo (language with each critic
  and both placements of the KL, heads) on a small Mamba and a small transformer; of ppo on CartPole-v1 and Pendulum-v1;
* SHA-256 digests of the trained weights, and of the files that demo and pairs write; the results of compare;
* the deterministic evaluation of configs/recipes/cartpole.yaml with the seeds 0, 1 and 2, 100,000 steps each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("mamba", "transformer")
PACKAGES = ("torch", "numpy", "numba", "gymnasium", "tokenizers", "safetensors")
OPTIMIZER = "training.schedule=constant training.weight_decay=0.0 training.adam_beta2=0.999"
SUPERVISED = f"{OPTIMIZER} training.num_epochs=1 training.adam_eps=1e-8 training.max_grad_norm=1.0"
PPO = (
    f"{OPTIMIZER} training.adam_eps=1e-5 training.max_grad_norm=0.5 training.clip_range=0.2 training.clip_range_vf=0.2"
    " training.gae_lambda=0.95 training.vf_coef=0.5 training.ent_coef=0.01 training.normalize_advantages=true"
    " training.learning_rate=0.0003"
)
LANGUAGE = (
    f"model.policy=language model.base_model=sft reward.source=reward prompts=demo {PPO} training.gamma=1.0"
    " training.iterations=6 training.replies=32 training.batch_size=16 training.num_epochs=2 sampling.temperature=1.0"
    " sampling.max_new_tokens=48 kl.beta=0.05 reward.missing_eos_penalty=-2.0"
)
IN_REWARD, IN_LOSS = "kl.placement=reward kl.estimator=k1", "kl.placement=loss kl.estimator=k3"
PAIRS = "model.base_model=sft data.train=demo data.limit=120 data.heldout_fraction=0.1"
TEXT_RUNS = {  # name: stage and its settings, in this order, in one folder for each family
    "demo": "demo base_rows=1600 sft_rows=200 preference_rows=200",
    "base": "base model.d_model=128 model.n_layers=2 model.max_length=256 data.train=demo data.limit=1600"
    " training.batch_size=16 training.num_epochs=1 training.learning_rate=0.003 training.schedule=linear"
    " training.warmup_steps=30 training.weight_decay=0.05 training.adam_beta2=0.95",
    "sft": f"sft model.base_model=base data.train=demo data.limit=80 {SUPERVISED} training.batch_size=4"
    " training.learning_rate=0.001",
    "pairs": "pairs model.base_model=sft prompts=demo limit=24 replies=4 matching=all max_new_tokens=48 noise=0.4"
    " heldout_fraction=0.3",
    "reward_features": f"reward {PAIRS} model.kind=features model.objective=mse model.input_dim=128 model.hidden_dim=64"
    f" model.num_layers=2 model.pooling=mean {SUPERVISED} training.batch_size=4 training.learning_rate=0.001",
    "reward": f"reward {PAIRS} model.kind=language model.objective=bradley_terry model.pooling=last {SUPERVISED}"
    " training.batch_size=4 training.learning_rate=0.001",
    "dpo": f"dpo {PAIRS} training.beta=0.1 training.label_smoothing=0.1 {SUPERVISED} training.batch_size=4"
    " training.learning_rate=0.0004",
    "dpo_by_prompt": "dpo model.base_model=sft data.train=pairs data.heldout=pairs training.group_by_prompt=true"
    f" training.beta=0.1 {SUPERVISED} training.batch_size=1 training.learning_rate=0.0004",
    "ppo_shared": f"ppo {LANGUAGE} model.critic=shared {IN_REWARD}",
    "ppo_shared_detached": f"ppo {LANGUAGE} model.critic=shared_detached {IN_REWARD}",
    "ppo_separate": f"ppo {LANGUAGE} model.critic=separate {IN_REWARD}",
    "ppo_reward": f"ppo {LANGUAGE} model.critic=reward {IN_REWARD}",
    "ppo_kl_in_loss": f"ppo {LANGUAGE} model.critic=shared {IN_LOSS}",
    "ppo_int8": f"ppo {LANGUAGE} model.critic=shared sampling.weights=int8 {IN_REWARD}",
    "ppo_heads": "ppo --config configs/ppo_train.yaml model.policy=heads model.base_model=sft prompts=demo"
    f" reward.source=reward_features {PPO} training.batch_size=32 training.num_epochs=4 training.total_timesteps=192"
    f" kl.beta=0.05 sampling.max_new_tokens=48",
    "compare": "compare models.sft=sft models.dpo=dpo models.ppo=ppo_shared reference=sft reward_model=reward pairs=pairs"
    " prompts=demo limit=16 replies=2 max_new_tokens=48",
}
ONLY_TRANSFORMER = ("ppo_int8",)
CARTPOLE = "ppo --config configs/recipes/cartpole.yaml"
CONTROL_RUNS = {
    "cartpole": f"{CARTPOLE} training.total_timesteps=768",
    "cartpole_weight_decay": f"{CARTPOLE} training.total_timesteps=768 training.weight_decay=0.01",  # trained by torch
    "pendulum": "ppo --config configs/recipes/pendulum.yaml training.total_timesteps=6144 evaluation.every=0",
}
SEEDS = (0, 1, 2)
Numbers = dict[str, Any]


def accord(words: str, name: str, folder: Path, *more: str) -> None:
    """Run one stage to its end.  Raises SystemExit with the end of its output if it fails."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    where = [f"name={name}", f"out={folder}", f"logs={folder / 'logs'}", "device=cpu", "precision=float32", "threads=1"]
    stage, *settings = words.split()
    command = [sys.executable, "-m", "accord.cli", stage, *settings, *where, *more]
    environment = {**os.environ, **threads, "ACCORD_REGISTRY": str(folder / "registry.sqlite")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")


def metrics_of(logs: Path) -> Iterator[tuple[str, list[float]]]:
    """(step and metric, its values at that step in the order of the lines) of a run's ``metrics.jsonl``."""
    found: dict[str, list[float]] = {}
    for line in (logs / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for metric, value in row.items():
            found.setdefault(f"step {step} {metric}", []).append(value)
    yield from found.items()


def digest_of_tensors(path: Path) -> str:
    """SHA-256 over name, dtype, shape and bytes of all tensors, in the order of their names."""
    import torch
    from safetensors.torch import load_file

    plain = path.suffix == ".pt"
    state = torch.load(path, weights_only=True)["model_state_dict"] if plain else load_file(path)
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def leaves(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """(dotted name, number) of every number in nested JSON."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{i}")
    elif isinstance(value, (int, float)):
        yield name, value


def numbers_of(folder: Path, name: str) -> Numbers:
    """Everything exact that a finished run left: metrics, digests of its weights and rows, results."""
    directory = folder / name
    found: Numbers = dict(metrics_of(folder / "logs" / name))
    for path in sorted([*directory.rglob("*.safetensors"), *directory.glob("*_final.pt")]):
        found[f"weights {path.relative_to(directory)}"] = digest_of_tensors(path)
    for path in sorted(directory.glob("*.jsonl")):
        found[f"rows {path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in directory.glob("results.json"):
        found |= leaves(json.loads(path.read_text(encoding="utf-8")), "results")
    return found


def record(folder: Path) -> Numbers:
    """All runs; {run: {what: number, list of numbers, or digest}}."""
    runs: Numbers = {}

    def one(label: str, words: str, place: Path, name: str, *more: str) -> Numbers:
        began = time.monotonic()
        accord(words, name, place, *more)
        print(f"{label:32} {time.monotonic() - began:5.1f} s", flush=True)
        return numbers_of(place, name)

    for family in FAMILIES:
        for name, words in TEXT_RUNS.items():
            if name in ONLY_TRANSFORMER and family != "transformer":
                continue
            more = [f"model.base_model={family}"] if name == "base" else []
            label = f"{family}/{name}"
            runs[label] = one(label, words, folder / family, name, "seed=0", "log_every=1", *more)
    for name, words in CONTROL_RUNS.items():
        runs[name] = one(name, words, folder, name, "seed=0", "log_every=1", "evaluation.episodes=5")
    for seed in SEEDS:
        name = f"cartpole_100k_seed{seed}"
        found = one(name, CARTPOLE, folder, name, f"seed={seed}", "evaluation.episodes=20")
        runs[name] = {what: x for what, x in found.items() if "/eval_" in what or what.startswith("weights")}
    return runs


def differences(new: Mapping[str, Numbers], old: Mapping[str, Numbers]) -> list[str]:
    """A line for each number of ``old`` that is missing or not exactly the same in ``new``; NaN equals NaN."""
    lines = []
    for run, numbers in old.items():
        for what, value in numbers.items():
            if run not in new or what not in new[run]:
                lines.append(f"{run} {what}: {_shown(value)} is gone")
            elif json.dumps(new[run][what]) != json.dumps(value):
                lines.append(f"{run} {what}: {_shown(value)} became {_shown(new[run][what])}")
    return lines


def _shown(value: Any) -> str:
    """A list of one number as that number."""
    return json.dumps(value[0] if isinstance(value, list) and len(value) == 1 else value)


def count(runs: Mapping[str, Numbers]) -> int:
    return sum(len(numbers) for numbers in runs.values())


def machine() -> dict[str, str]:
    """What else determines the exact bits."""
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"processor": name, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT.json", type=Path, help="where to write the numbers")
    parser.add_argument("--against", metavar="OLD.json", type=Path, help="an earlier recording to compare with")
    parser.add_argument("--pipeline", metavar="FOLDER", type=Path, help="out folder of a finished pipeline")
    options = parser.parse_args()
    old = json.loads(options.against.read_text(encoding="utf-8")) if options.against else None
    results = options.pipeline and json.loads((options.pipeline / "results.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        runs = record(Path(folder))
    if results:
        runs["pipeline"] = dict(leaves(results, "results"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    recording = {"machine": machine(), "runs": runs}
    options.out.write_text(json.dumps(recording, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}: {count(runs)} numbers of {len(runs)} runs")
    if old is None:
        return 0
    if old["machine"] != recording["machine"]:
        print(f"note: recorded on another machine or with other packages: {old['machine']}; now {recording['machine']}")
    if not results:
        old["runs"].pop("pipeline", None)  # not requested this time
    lines = differences(runs, old["runs"])
    print("\n".join([*lines, f"{len(lines)} of {count(old['runs'])} numbers differ"]))
    if added := count(runs) - count(old["runs"]) + sum(line.endswith(" is gone") for line in lines):
        print(f"{added} numbers are new")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
