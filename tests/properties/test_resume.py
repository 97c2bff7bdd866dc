"""A run stopped or killed anywhere resumes bit-exactly: the same weights, metrics and log as an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from accord.errors import Interrupted, UserError
from accord.runtime.run import Run


class Killed(BaseException):
    """What no handler catches."""


def cases(world: Any, rewards: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Every trainer: its kind and its config.  Schedules, passes and epochs are such that each matters."""
    model = {"base_model": world.mamba, "max_length": 64}
    schedule = {"schedule": "cosine", "warmup_steps": 2, "learning_rate": 0.01, "weight_decay": 0.01}
    supervised = {"batch_size": 3, "micro_batch_size": 2, "num_epochs": 2, **schedule}
    pairs = {"train": world.preferences, "heldout_fraction": 0.2}
    reward = {"max_length": 96, "base_model": world.mamba}
    sizes = {"d_model": 32, "n_layers": 2, "max_length": 40}
    text = {"prompts": world.prompts, "reward": {"source": f"{rewards}:share_of_a"}}
    language = {"policy": "language", "base_model": world.mamba, "max_length": 64}
    replies = {"replies": 6, "samples_per_prompt": 2, "batch_size": 4, "num_epochs": 2, "iterations": 3}
    kl = {"beta": 0.1, "target": 0.02, "horizon": 20}
    heads = {"policy": "heads", "base_model": world.mamba, "obs_dim": 32, "hidden_dim": 16, "max_length": 64}
    steps = {"n_steps": 16, "n_envs": 2, "batch_size": 16, "num_epochs": 2, "total_timesteps": 96}
    return {
        "base mamba": ("base", {"model": sizes, "data": {"train": world.base}, "training": supervised}),
        "base transformer": (
            "base",
            {
                "model": {**sizes, "base_model": "transformer"},
                "data": {"train": world.base, "heldout": world.base},
                "training": supervised,
                "eval_every": 3,
            },
        ),
        "sft": (
            "sft",
            {
                "model": model,
                "data": {"train": world.sft, "heldout": world.sft},
                "training": supervised,
                "eval_every": 2,
            },
        ),
        "reward features": (
            "reward",
            {
                "model": {**reward, "input_dim": 32, "hidden_dim": 16},
                "data": pairs,
                "training": {**supervised, "batch_size": 2},
            },
        ),
        "reward language": (
            "reward",
            {
                "model": {**reward, "kind": "language"},
                "data": pairs,
                "training": {**supervised, "batch_size": 2, "head_learning_rate": 0.05},
            },
        ),
        "dpo": (
            "dpo",
            {
                "model": {**model, "max_length": 96},
                "data": pairs,
                "training": {**supervised, "batch_size": 2, "label_smoothing": 0.1},
            },
        ),
        "ppo language": (
            "ppo",
            {
                "model": language,
                **text,
                "kl": kl,
                "training": {**replies, "micro_batch_size": 3, "learning_rate": 0.01, "schedule": "linear"},
                "sampling": {"max_new_tokens": 6, "temperature": 0.8},
            },
        ),
        "ppo language, critic of its own": (
            "ppo",
            {
                "model": {**language, "base_model": world.transformer, "critic": "separate"},
                **text,
                "training": {
                    **replies,
                    "learning_rate": 0.02,
                    "target_kl": 3e-4,
                    "schedule": "kl_adaptive",
                    "value_warmup": 1,
                },
                "sampling": {"max_new_tokens": 6},
            },
        ),
        "ppo language, stopped by its KL": (
            "ppo",
            {
                "model": {**language, "critic": "reward"},
                **text,
                "reward": {"source": world.reward, "missing_eos_penalty": -1.0},
                "training": {**replies, "learning_rate": 0.03, "target_kl": 2e-3},
                "sampling": {"max_new_tokens": 6},
            },
        ),
        "ppo language, on old replies": (
            "ppo",
            {
                "model": language,
                **text,
                "training": {**replies, "learning_rate": 0.03},
                "sampling": {"max_new_tokens": 6},
                "rollout": {"lag": 1},
                "correction": {"kind": "vtrace"},
            },
        ),
        "ppo heads": (
            "ppo",
            {"model": heads, **text, "kl": kl, "training": steps, "sampling": {"max_new_tokens": 5}},
        ),
        "ppo vector": (
            "ppo",
            {
                "model": {"policy": "control", "hidden_dim": 16},
                "environment": "CartPole-v1",
                "training": {**steps, "total_timesteps": 128, "learning_rate": 0.01},
                "evaluation": {"episodes": 2, "every": 32, "curve": False},
            },
        ),
        "ppo vector, continuous and normalized": (
            "ppo",
            {
                "model": {"policy": "control", "hidden_dim": 16},
                "environment": "Pendulum-v1",
                "normalize": {"observations": True, "rewards": True},
                "training": {
                    **steps,
                    "n_steps": 120,
                    "batch_size": 120,
                    "total_timesteps": 720,
                    "schedule": "linear",
                    "clip_schedule": "linear",
                    "learning_rate": 0.01,
                },
                "evaluation": {"episodes": 2, "every": 240, "max_steps": 20, "curve": False},
            },
        ),
    }


NAMES = tuple(cases(type("W", (), {"__getattr__": lambda self, name: name})(), ""))
FINAL = {"reward": "reward_model_final.pt"}


class Ends:
    """What a stage writes, for comparison."""

    def __init__(self, tmp_path: Path, kind: str, name: str) -> None:
        out = tmp_path / "out" / name
        final = torch.load(out / FINAL.get(kind, f"{kind}_final.pt"), weights_only=True)
        self.weights, self.normalizer = final["model_state_dict"], str(final.get("normaliser"))
        lines = (tmp_path / "logs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        self.metrics = [json.loads(line) for line in lines]
        self.done = json.loads((out / "done.json").read_text(encoding="utf-8"))["metrics"]
        self.left = sorted(p.name for p in out.iterdir())

    def assert_equal(self, other: Ends) -> None:
        assert self.weights.keys() == other.weights.keys()
        for name, value in self.weights.items():
            assert torch.equal(value, other.weights[name]), name
        assert self.normalizer == other.normalizer
        assert self.metrics == other.metrics  # no step twice, none missing, the same numbers
        assert self.done == other.done
        assert self.left == other.left


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """From now on runs are stopped by the user (after saving) or killed (without) once ``step`` is done."""
    tick = Run.tick

    def stopping(self: Run, metrics: Mapping[str, float]) -> None:
        tick(self, metrics)
        if self.step == step:
            if how == "kill":
                raise Killed
            self.stop.raised = True

    monkeypatch.setattr(Run, "tick", stopping)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every second step is saved: a kill comes after a save, or between two, in the middle of a rollout."""
    kind, values = cases(world, rewards)[name]
    stage(kind, values, "whole", save_every=2)
    whole = Ends(tmp_path, kind, "whole")
    last = max(int(row["step"]) for row in whole.metrics)
    assert last >= 5
    for k, (how, step) in enumerate(
        [("stop", 1), ("kill", 3), ("kill", last // 2 + 1), ("kill", last), ("stop", last)]
    ):
        with monkeypatch.context() as patch:
            interrupted(patch, step, how)
            with pytest.raises(Interrupted if how == "stop" else Killed):
                stage(kind, values, f"cut{k}", save_every=2)
        assert not (tmp_path / "out" / f"cut{k}" / "done.json").exists()
        torch.rand(17)  # whatever else happened in the process
        stage(kind, values, f"cut{k}", resume=True, save_every=2)
        Ends(tmp_path, kind, f"cut{k}").assert_equal(whole)


@pytest.mark.parametrize("name", ["sft", "ppo language", "ppo vector", "ppo vector, continuous and normalized"])
def test_a_run_may_be_stopped_at_every_step(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind, values = cases(world, rewards)[name]
    stage(kind, values, "whole")
    whole = Ends(tmp_path, kind, "whole")
    for step in range(1, max(int(row["step"]) for row in whole.metrics) + 1):
        with monkeypatch.context() as patch:
            interrupted(patch, step, "stop")
            with pytest.raises(Interrupted, match=f"stopped at step {step} of"):
                stage(kind, values, "cut", resume=True)
    stage(kind, values, "cut", resume=True)
    Ends(tmp_path, kind, "cut").assert_equal(whole)


def test_a_process_killed_by_the_system_is_resumed_by_another(
    stage: Any, world: Any, rewards: str, tmp_path: Path
) -> None:
    """SIGKILL, as an out-of-memory killer sends it, in the middle of a rollout."""
    kind, values = cases(world, rewards)["ppo language"]
    stage(kind, values, "whole")
    given = {**values, "name": "cut", "out": str(tmp_path / "out"), "logs": str(tmp_path / "logs")}
    given |= {"device": "cpu", "log_every": 1, "seed": 7, "save_every": 1}
    import rewards_of_the_tests  # type: ignore[import-not-found]

    code = f"""
import json, os, signal, sys
import torch
torch.set_num_threads({torch.get_num_threads()})
sys.path.insert(0, {str(Path(rewards_of_the_tests.__file__).parent)!r})
from accord.config.load import build
from accord.pipeline.stage import run_stage
from accord.runtime.run import Run
from accord.config.ppo import PPO
tick = Run.tick
def killing(self, metrics):
    if self.step == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    tick(self, metrics)
Run.tick = killing
run_stage("ppo", build(PPO, json.loads({json.dumps(given)!r}), {{}}, "x"), resume=False, reuse=False)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert (tmp_path / "out" / "cut" / "state.pt").exists()
    stage(kind, values, "cut", resume=True)
    Ends(tmp_path, kind, "cut").assert_equal(Ends(tmp_path, kind, "whole"))


# ------------------------------------------------------------------------------------- states
def stopped(stage: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: int = 3, **more: Any) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, step, "stop")
        with pytest.raises(Interrupted):
            stage("sft", values, **more)


def test_a_kill_while_the_state_is_written_resumes_from_the_previous_state(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, values = cases(world, rewards)["sft"]
    stage("sft", values, "whole")
    replace, calls = os.replace, {"n": 0}

    def killed(source: Any, target: Any) -> None:
        if str(target).endswith("state.pt"):
            calls["n"] += 1
            if calls["n"] == 4:
                raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            stage("sft", values, "cut", save_every=1)
    assert torch.load(tmp_path / "out" / "cut" / "state.pt", weights_only=True)["step"] == 3
    stage("sft", values, "cut", resume=True)
    whole, cut = Ends(tmp_path, "sft", "whole"), Ends(tmp_path, "sft", "cut")
    cut.left = [name for name in cut.left if not name.startswith(".state.pt.")]  # what the kill left aside
    cut.assert_equal(whole)


def test_a_damaged_state_is_reported(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, values = cases(world, rewards)["sft"]
    stopped(stage, values, monkeypatch)
    state = tmp_path / "out" / "sft" / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"state\.pt: not a readable checkpoint .* delete it to start again"):
        stage("sft", values, resume=True)
    state.write_bytes(whole)
    stage("sft", values, resume=True)  # the refusal touched nothing


@pytest.mark.parametrize("change", ["setting", "seed", "data", "model"])
def test_a_state_of_other_settings_is_not_resumed(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    _, values = cases(world, rewards)["sft"]
    data = tmp_path / "sft.jsonl"
    data.write_bytes(Path(world.sft).read_bytes())
    values["data"] = {"train": str(data)}
    stopped(stage, values, monkeypatch)
    state = (tmp_path / "out" / "sft" / "state.pt").read_bytes()
    other, more = values, {}
    if change == "setting":
        other = {**values, "training": {**values["training"], "learning_rate": 0.02}}
    elif change == "seed":
        more = {"seed": 8}
    elif change == "data":
        data.write_text(data.read_text(encoding="utf-8").replace("rex", "max"), encoding="utf-8")
    else:
        other = {**values, "model": {**values["model"], "base_model": world.transformer}}
    with pytest.raises(UserError, match=r"other settings or inputs"):
        stage("sft", other, resume=True, **more)
    assert (tmp_path / "out" / "sft" / "state.pt").read_bytes() == state
    if change != "data":
        stage("sft", values, resume=True)


def test_settings_that_change_no_result_may_change_on_resume(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, values = cases(world, rewards)["sft"]
    stage("sft", values, "whole")
    stopped(stage, values, monkeypatch, name="cut")
    stage("sft", values, "cut", resume=True, save_every=1)
    Ends(tmp_path, "sft", "cut").assert_equal(Ends(tmp_path, "sft", "whole"))


def test_without_resume_a_stage_starts_from_the_beginning(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Callable[[str], Any]
) -> None:
    _, values = cases(world, rewards)["sft"]
    stage("sft", values, "whole")
    stopped(stage, values, monkeypatch, name="cut")
    stage("sft", values, "cut")
    assert [row["step"] for row in lines("cut") if "learning_rate" in row] == list(range(1, 7))
    Ends(tmp_path, "sft", "cut").assert_equal(Ends(tmp_path, "sft", "whole"))


def test_resuming_without_a_state_starts_from_the_beginning(
    stage: Any, world: Any, rewards: str, tmp_path: Path
) -> None:
    _, values = cases(world, rewards)["sft"]
    stage("sft", values, "whole")
    stage("sft", values, "new", resume=True)
    Ends(tmp_path, "sft", "new").assert_equal(Ends(tmp_path, "sft", "whole"))


def test_a_stage_that_fails_at_the_end_resumes_from_its_last_step(
    stage: Any, world: Any, rewards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model could not be written (a full disk, say); nothing is trained again and nothing is lost."""
    import accord.algorithms.sft as sft

    _, values = cases(world, rewards)["sft"]
    stage("sft", values, "whole", save_every=3)

    def full(*_: object) -> NoReturn:
        raise UserError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(sft, "save_model", full)
        with pytest.raises(UserError, match="no space"):
            stage("sft", values, "cut", save_every=3)
    ticked: list[int] = []
    monkeypatch.setattr(Run, "tick", lambda self, metrics: ticked.append(self.step))
    stage("sft", values, "cut", resume=True)
    assert ticked == []
    Ends(tmp_path, "sft", "cut").assert_equal(Ends(tmp_path, "sft", "whole"))
