"""PPO over ranks is PPO of one process: the same replies, advantages, steps and weights, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from accord.distributed import mesh
from accord.distributed.rollouts import require_prompts
from accord.errors import UserError
from tests.distributed import ppo_cases as cases

CASES = cases.__name__
pytestmark = pytest.mark.xdist_group("ranks")


@pytest.fixture
def settings(world: Any) -> Callable[..., dict[str, Any]]:
    """Minibatches of 7 replies and of 1, so that shares differ, and in the second one rank has none."""

    def make(family: str, **parallel: Any) -> dict[str, Any]:
        return {
            "model": {"base_model": getattr(world, family), "critic": "separate", "max_length": 64},
            "training": {
                "iterations": 3, "replies": 8, "samples_per_prompt": 2, "batch_size": 7, "num_epochs": 1,
                "learning_rate": 1e-2, "micro_batch_size": 3, "weight_decay": 0.1,
            },
            "kl": {"beta": 0.1, "target": 1.0, "horizon": 16},
            "reward": {"source": world.reward, "whiten": True, "missing_eos_penalty": -1.0},
            "sampling": {"max_new_tokens": 6},
            "prompts": world.prompts,
            "device": "cpu",
            "seed": 3,
            "parallel": parallel,
        }  # fmt: skip

    return make


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Exactly the same replies, and numbers equal to 1e-8 of the largest in their tensor."""
    assert one.keys() == two.keys()
    for name, x in one.items():
        y = two[name]
        assert x.shape == y.shape, name
        if not x.is_floating_point():
            assert bool((x == y).all()), name
        else:
            error = float((x - y).abs().max()) if x.numel() else 0.0
            assert error <= 1e-8 * max(1.0, float(x.abs().max())), f"{name}: {error:.1e}"


def same_steps(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    """Fractions of tokens to 1e-7: one process divides them in float32, since their terms are zeros and ones."""
    assert len(one) == len(two) >= 5
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value == pytest.approx(b[name], rel=1e-7 if "fraction" in name else 1e-8, abs=1e-10), name


@pytest.mark.parametrize("family", ["transformer", "mamba"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_take_the_steps_of_one(pair: Any, settings: Any, tmp_path: Path, family: str, strategy: str) -> None:
    alone = cases.train(settings(family), str(tmp_path / "one"), str(tmp_path / "one.safetensors"))
    values = settings(family, strategy=strategy)
    both = pair(CASES, "train", values=values, folder=str(tmp_path / "two"), file=str(tmp_path / "two.safetensors"))
    same_steps(alone["steps"], both[0]["steps"])
    assert both[0] == both[1]
    same(load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors"))


def test_a_rollout_needs_a_prompt_for_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "size", lambda: 4)
    require_prompts(4)
    with pytest.raises(UserError, match=r"4 processes share the prompts of a rollout, and there are 3"):
        require_prompts(3)


def test_ranks_stopped_within_a_rollout_resume_as_if_they_had_not_stopped(
    pair: Any, settings: Any, tmp_path: Path
) -> None:
    """The signal reaches the last rank alone, after the third of six steps, between the two of a rollout."""
    values = settings("transformer", strategy="fsdp")
    values["training"] |= {"micro_batch_size": 2, "target_kl": 0.05, "schedule": "kl_adaptive"}
    first, second = (str(tmp_path / name) for name in ("first.safetensors", "second.safetensors"))
    whole = pair(CASES, "train", values=values, folder=str(tmp_path / "whole"), file=first)
    part = pair(CASES, "train", values=values, folder=str(tmp_path / "part"), file=second, stop_after=3)
    assert [answer["stopped"] for answer in part] == [True, True]
    rest = pair(CASES, "train", values=values, folder=str(tmp_path / "part"), file=second, resume=True)
    assert part[0]["steps"] + rest[0]["steps"] == whole[0]["steps"]
    last = max(name for name in load_file(first) if name.startswith("weight/6/"))
    assert bool((load_file(first)[last] == load_file(second)[last.replace("/6/", "/3/")]).all())
