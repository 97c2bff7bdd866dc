"""Nothing phones home: every stage kind runs where no address can be looked up and no connection be made."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.stage_kinds.table import STAGE_KINDS

ONLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")


@pytest.fixture
def contacts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every attempt to reach another machine; each fails, as without a network.  Nothing is switched off by a variable."""
    found: list[str] = []

    def refuse(name: str) -> Any:
        def call(*given: Any, **more: Any) -> None:
            if isinstance(given[0], socket.socket) and given[0].family == socket.AF_UNIX:
                return  # within this machine
            found.append(f"{name}{given}")
            raise OSError("the network is unreachable")

        return call

    for variable in ONLINE:
        monkeypatch.delenv(variable, raising=False)
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyaddr", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(name))
    return found


def stages(world: Any, rewards: str, out: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Every stage kind, and every variant of reward and ppo, as (name, kind, settings) of a few steps."""
    few = {"batch_size": 4, "num_epochs": 1}
    steps = {"n_steps": 8, "n_envs": 2, "batch_size": 8, "num_epochs": 1, "total_timesteps": 16}
    pairs = {"train": world.preferences, "heldout_fraction": 0.2}
    text = {"prompts": world.prompts, "reward": {"source": world.reward}, "sampling": {"max_new_tokens": 4}}
    model = {"base_model": world.transformer, "max_length": 64}
    language = {"policy": "language", **model}
    reward = {"base_model": world.mamba, "max_length": 96}
    return [
        ("demo", "demo", {"base_rows": 20, "sft_rows": 10, "preference_rows": 8}),
        ("pretrained", "pretrained", {"source": world.transformer}),
        (
            "base",
            "base",
            {"model": {"d_model": 32, "n_layers": 1, "max_length": 40}, "data": {"train": world.base}, "training": few},
        ),
        ("sft", "sft", {"model": model, "data": {"train": world.sft}, "training": few}),
        (
            "pairs",
            "pairs",
            {
                "model": {"base_model": world.transformer, "max_length": 96},
                "prompts": world.prompts,
                "annotator": f"{rewards}:brevity",
                "replies": 8,
                "max_new_tokens": 32,
                "temperatures": [3.0],
                "heldout_fraction": 0.4,
            },
        ),
        (
            "sample",
            "sample",
            {
                "models": {"one": world.transformer, "two": world.mamba},
                "prompts": world.prompts,
                "replies": 8,
                "max_new_tokens": 32,
                "temperatures": [3.0],
                "model": {"max_length": 96},
            },
        ),
        (
            "judge",
            "judge",
            {
                "samples": str(out / "sample" / "samples.jsonl"),
                "judge": f"{rewards}:brevity",
                "heldout_fraction": 0.0,
            },
        ),
        ("reward", "reward", {"model": {**reward, "kind": "language"}, "data": pairs, "training": few}),
        (
            "reward_features",
            "reward",
            {"model": {**reward, "input_dim": 32, "hidden_dim": 8}, "data": pairs, "training": few},
        ),
        ("ppo", "ppo", {"model": language, **text, "training": {**few, "replies": 4, "iterations": 1}}),
        (
            "ppo_heads",
            "ppo",
            {"model": {"policy": "heads", **model, "obs_dim": 32, "hidden_dim": 8}, **text, "training": steps},
        ),
        (
            "ppo_control",
            "ppo",
            {
                "model": {"policy": "control", "hidden_dim": 8},
                "environment": "CartPole-v1",
                "training": steps,
                "evaluation": {"episodes": 1, "max_steps": 5, "curve": False},
            },
        ),
        ("dpo", "dpo", {"model": {**model, "max_length": 96}, "data": pairs, "training": few}),
        (
            "compare",
            "compare",
            {
                "models": {"sft": str(out / "sft" / "model"), "dpo": str(out / "dpo" / "model")},
                "reference": str(out / "sft" / "model"),
                "base": world.transformer,
                "prompts": world.prompts,
                "gold": f"{rewards}:brevity",
                "reward_model": "",
                "pairs": "",
                "replies": 2,
                "max_new_tokens": 4,
            },
        ),
        (
            "fuse",
            "fuse",
            {"models": [{"model": str(out / "sft" / "model")}, {"model": str(out / "dpo" / "model")}]},
        ),
    ]


def test_every_stage_runs_without_a_network(
    stage: Any, world: Any, rewards: str, tmp_path: Path, contacts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = stages(world, rewards, tmp_path / "out")
    assert {kind for _, kind, _ in jobs} == set(STAGE_KINDS)
    before = set(sys.modules)
    for name, kind, settings in jobs:
        stage(kind, settings, name)
        assert json.loads((tmp_path / "out" / name / "done.json").read_text())["kind"] == kind
    assert main(["models", "list"]) == 0
    assert main(["models", "export", "sft", str(tmp_path / "export")]) == 0
    assert contacts == []
    reporting = {"wandb", "mlflow", "comet_ml", "sentry_sdk", "gradio", "aim", "neptune"}
    assert not reporting & {name.partition(".")[0] for name in set(sys.modules) - before}


def test_a_model_of_another_family_opens_without_a_network(tmp_path: Path, contacts: list[str]) -> None:
    """transformers asks the hub for files that a folder lacks, unless local_files_only is set."""
    transformers = pytest.importorskip("transformers")
    from accord.models.open import open_backbone

    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    open_backbone(tmp_path / "gpt2")
    assert contacts == []


def test_a_contact_is_seen(contacts: list[str]) -> None:
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("example.org", 80))
    with pytest.raises(OSError, match="unreachable"):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
    assert len(contacts) == 2
