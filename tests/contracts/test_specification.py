"""What the specification fixes, word by word."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

REPO = Path(__file__).parents[2]
MODULES = {
    "src.rl.policy": ["PolicyNetwork", "ValueNetwork", "ActorCritic"],
    "src.rl.rollout_buffer": ["RolloutBuffer"],
    "src.training.rl_utils": ["compute_gae", "normalize_rewards", "normalize_advantages", "explained_variance"],
    "src.training.rlhf_sft": ["main"],
    "src.training.train_reward_model": ["main"],
    "src.training.train_ppo": ["main"],
    "src.training.train_dpo": ["main"],
}
COMMANDS = {
    "src.training.rlhf_sft": ("sft", "configs/rlhf_sft.yaml"),
    "src.training.train_reward_model": ("reward", "configs/reward_model.yaml"),
    "src.training.train_ppo": ("ppo", "configs/ppo_train.yaml"),
    "src.training.train_dpo": ("dpo", "configs/dpo_train.yaml"),
}
VALUES: dict[str, dict[str, dict[str, Any]]] = {
    "rlhf_sft.yaml": {
        "model": {"base_model": "mamba", "d_model": 128, "max_length": 256},
        "training": {"batch_size": 4, "num_epochs": 1, "learning_rate": 0.0001},
    },
    "reward_model.yaml": {
        "model": {"input_dim": 128, "hidden_dim": 64, "num_layers": 2},
        "training": {"batch_size": 8, "num_epochs": 1, "learning_rate": 0.001},
    },
    "ppo_train.yaml": {
        "model": {"obs_dim": 128, "action_dim": 50, "hidden_dim": 64},
        "training": {"total_timesteps": 500, "n_steps": 32, "clip_range": 0.2, "gamma": 0.99, "gae_lambda": 0.95},
    },
    "dpo_train.yaml": {"training": {"beta": 0.1}},
}
TESTS = {
    "__init__.py": [],
    "test_sft_trainer.py": ["test_policy_network", "test_value_network", "test_actor_critic"],
    "test_reward_model.py": ["test_reward_model_forward", "test_reward_model_training_step"],
    "test_ppo_trainer.py": ["test_rollout_buffer", "test_ppo_update", "test_gae_computation"],
    "test_end_to_end_rlhf.py": [
        "test_sft_checkpoint_creation",
        "test_reward_model_checkpoint",
        "test_ppo_checkpoint",
    ],
}


# ------------------------------------------------------------------ paths and names
@pytest.mark.parametrize("module", MODULES)
def test_the_specified_names_are_importable(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in MODULES[module]:
        assert callable(getattr(loaded, name))
        assert name in loaded.__all__
    path = REPO / f"{module.replace('.', '/')}.py"
    assert len([x for x in path.read_text().splitlines() if x.strip()]) <= 12, "a forwarder, and nothing else"


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_module_is_a_command(module: str, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: accord {COMMANDS[module][0]} [--config FILE]")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_module_takes_its_config(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m src.training.… --config configs/….yaml``: the stage, with that file."""
    from accord.config.load import load
    from accord.stage_kinds.table import STAGE_KINDS

    kind, config = COMMANDS[module]
    got: list[Any] = []
    monkeypatch.setattr("accord.pipeline.standalone.run_alone", lambda *given: got.append(given))
    monkeypatch.setattr(sys, "argv", ["module", "--config", str(REPO / config)])
    assert importlib.import_module(module).main() == 0
    assert got == [(kind, load(STAGE_KINDS[kind].settings, REPO / config), False)]


def test_the_specified_names_are_the_packages_own() -> None:
    from accord.functional import advantages
    from accord.models import heads as actor_critic
    from accord.rollout.env import buffer

    for module, source in (
        ("src.rl.policy", actor_critic),
        ("src.rl.rollout_buffer", buffer),
        ("src.training.rl_utils", advantages),
    ):
        for name in MODULES[module]:
            assert getattr(importlib.import_module(module), name) is getattr(source, name)


def test_nothing_in_the_package_imports_src_and_the_wheel_has_none() -> None:
    for path in (REPO / "accord").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] == "src"], path
    assert 'packages = ["accord"]' in wheel_section()


def wheel_section() -> str:
    return (REPO / "pyproject.toml").read_text().split("[tool.hatch.build.targets.wheel]")[1].split("\n[")[0]


def test_the_command_is_installed_and_python_310_is_supported() -> None:
    text = (REPO / "pyproject.toml").read_text()
    assert 'accord = "accord.__main__:main"' in text
    assert 'requires-python = ">=3.10"' in text
    for path in [*(REPO / "accord").rglob("*.py"), *(REPO / "src").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_the_runner_is_executable_and_runs_the_pipeline() -> None:
    path = REPO / "run_phase4.sh"
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert text.startswith("#!")
    assert "accord run configs/pipeline.yaml" in text
    subprocess.run(["bash", "-n", str(path)], check=True)


# ------------------------------------------------------------------ configs
@pytest.mark.parametrize("file", VALUES)
def test_configs_hold_the_specified_keys_and_values(file: str) -> None:
    written = yaml.safe_load((REPO / "configs" / file).read_text())
    for section, expected in VALUES[file].items():
        for key, value in expected.items():
            assert written[section][key] == value
            assert type(written[section][key]) is type(value)


def test_the_dpo_config_names_preference_pairs() -> None:
    written = yaml.safe_load((REPO / "configs" / "dpo_train.yaml").read_text())
    assert written["data"]["train"]


# ------------------------------------------------------------------ the Python API
def test_the_actor_critic_has_the_documented_calls() -> None:
    from src.rl.policy import ActorCritic

    torch.manual_seed(0)
    model = ActorCritic(obs_dim=128, action_dim=50, hidden_dim=64)
    obs = torch.randn(1, 128)
    action, log_prob, value = model.get_action_and_value(obs)
    actions = torch.randint(0, 50, (32,))
    log_probs, values, entropy = model.evaluate(obs.repeat(32, 1), actions)
    assert log_probs.shape == values.shape == entropy.shape == (32,)

    # the order of each triple, recognized by what only the right order can be
    assert action.dtype == torch.int64
    assert log_prob.item() < 0
    again = model.evaluate(obs, action)
    torch.testing.assert_close(again[0], log_prob)
    torch.testing.assert_close(again[1], value)
    torch.testing.assert_close(values, value.expand(32))  # one state, one value
    torch.testing.assert_close(entropy, entropy[:1].expand(32))
    distribution = model.evaluate(obs.repeat(50, 1), torch.arange(50))[0]
    torch.testing.assert_close(entropy[0], -(distribution.exp() * distribution).sum())
    torch.testing.assert_close(log_probs, distribution[actions])


def test_the_default_width_is_the_shipped_configs() -> None:
    from src.rl.policy import ActorCritic

    assert inspect.signature(ActorCritic).parameters["hidden_dim"].default == 64
    assert list(inspect.signature(ActorCritic).parameters)[:3] == ["obs_dim", "action_dim", "hidden_dim"]
    shipped = ActorCritic(128, 50, VALUES["ppo_train.yaml"]["model"]["hidden_dim"])
    ActorCritic(obs_dim=128, action_dim=50).load_state_dict(shipped.state_dict())


def test_a_policy_samples_or_is_greedy_and_a_shared_trunk_is_smaller() -> None:
    from src.rl.policy import ActorCritic, PolicyNetwork, ValueNetwork

    torch.manual_seed(0)
    policy = PolicyNetwork(obs_dim=7, action_dim=3, hidden_dim=16)  # observations of any dimension
    obs = torch.randn(1, 7).expand(400, 7)
    assert policy.get_action(obs, deterministic=True)[0].unique().numel() == 1
    assert policy.get_action(obs)[0].unique().numel() == 3
    assert ValueNetwork(obs_dim=7, hidden_dim=16)(obs).shape == (400,)
    sizes = [sum(p.numel() for p in ActorCritic(7, 3, 16, shared=s).parameters()) for s in (True, False)]
    assert sizes[0] < sizes[1]


def test_the_buffer_holds_what_is_named_and_is_circular() -> None:
    from src.rl.rollout_buffer import RolloutBuffer

    buffer = RolloutBuffer(n_steps=3, obs_dim=2)
    for step in range(5):
        buffer.add(
            torch.full((1, 2), float(step)),
            torch.tensor([step]),
            torch.tensor([1.0]),
            torch.tensor([0.5]),
            torch.tensor([-1.0]),
            torch.tensor([False]),
        )
    buffer.compute(last_value=0.0)
    (rows,) = buffer.get()
    assert rows.observations[:, 0].tolist() == [2, 3, 4]
    for name in ("observations", "actions", "rewards", "values", "log_probs", "dones", "advantages", "returns"):
        assert isinstance(getattr(rows, name), torch.Tensor)
        assert len(getattr(rows, name)) == 3


# ------------------------------------------------------------------ the algorithms as written
def test_advantages_are_the_specified_recursion() -> None:
    """advantages[t] = delta + gamma·gae_lambda·(1 − done)·advantages[t+1], written out."""
    from src.training.rl_utils import compute_gae

    rewards, values = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.25, -1.0])
    dones = torch.tensor([False, True, False])
    advantages, returns = compute_gae(rewards, values, dones, 2.0, gamma=0.9, gae_lambda=0.5)
    third = 3 + 0.9 * 2 - (-1)
    second = 2 - 0.25
    first = 1 + 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * second
    torch.testing.assert_close(advantages, torch.tensor([first, second, third]))
    torch.testing.assert_close(returns, advantages + values)


def test_the_ppo_loss_is_the_specified_formula() -> None:
    """loss = −min(ratio·A, clip(ratio, 1−ε, 1+ε)·A)"""
    from accord.functional.losses.policy import ppo_policy_loss

    old = torch.zeros(1, 4, dtype=torch.float64)
    new = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64).log()
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    loss = ppo_policy_loss(new, old, advantages, torch.ones(1, 4, dtype=torch.bool), 0.2).loss
    assert float(loss.total) == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8), rel=1e-6)
    assert float(loss.count) == 4


def test_the_dpo_loss_is_the_specified_formula() -> None:
    """loss = −log_sigmoid(beta·(policy_logratios − ref_logratios))"""
    from accord.functional.losses.preference import dpo_loss

    chosen, rejected, ref_chosen, ref_rejected = (torch.tensor([x]) for x in (-3.0, -5.0, -4.0, -4.5))
    loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.1, 0.0).loss
    expected = -torch.nn.functional.logsigmoid(0.1 * ((chosen - rejected) - (ref_chosen - ref_rejected)))
    assert loss.value() == pytest.approx(expected.item(), rel=1e-6)


# ------------------------------------------------------------------ the eleven tests
def test_the_eleven_tests_and_nothing_more() -> None:
    folder = REPO / "tests" / "test_phase4"
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == sorted(TESTS)
    assert (folder / "__init__.py").read_text() == ""
    for file, names in TESTS.items():
        tree = ast.parse((folder / file).read_text())
        found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test")]
        assert [n.name for n in found] == names
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name.startswith("Test")]
        for node in found:
            marks = [ast.unparse(d) for d in node.decorator_list]
            assert not [m for m in marks if "skip" in m or "slow" in m or "xfail" in m or "parametrize" in m]
            assert [n for n in ast.walk(node) if isinstance(n, ast.Assert)], f"{node.name} cannot fail"
    assert sum(map(len, TESTS.values())) == 11
