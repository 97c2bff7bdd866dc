"""Corrections: what ``auto`` stands for, limits that fit, and stage keys that stay as they were."""

from __future__ import annotations

from typing import Any

import pytest

from accord.config.load import build
from accord.config.ppo import PPO
from accord.errors import UserError
from accord.pipeline.task import stage_key

CARTPOLE = {"environment": "CartPole-v1"}
STALE = {"rollout": {"engine": "ray", "max_staleness": 1}}


def config(**values: Any) -> Any:
    return build(PPO, values, {}, "the test")


def test_auto_corrects_where_samples_may_be_stale_and_nowhere_else() -> None:
    assert config().correction_in_force.kind == "none"
    assert config(rollout={"engine": "ray"}).correction_in_force.kind == "none"
    assert config(**STALE).correction_in_force.kind == "token_tis"
    assert config(**STALE).correction_in_force.cap == 2.0
    assert config(rollout={"lag": 2}).correction_in_force.kind == "token_tis"
    assert config(**CARTPOLE).correction_in_force.kind == "none"
    assert config(**CARTPOLE, **STALE).correction_in_force.kind == "vtrace"
    for kind in ("none", "sequence_tis", "vtrace", "decoupled"):
        assert config(**STALE, correction={"kind": kind}).correction_in_force.kind == kind


@pytest.mark.parametrize("values", [{}, CARTPOLE])
def test_c_bar_above_rho_bar_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"correction\.c_bar \(1\.0\) must not exceed correction\.rho_bar \(0\.5\)"):
        config(**values, correction={"kind": "vtrace", "rho_bar": 0.5})


def test_steps_take_no_corrections_of_replies() -> None:
    with pytest.raises(UserError, match=r"correction\.kind"):
        config(**CARTPOLE, correction={"kind": "sequence_tis"})
    with pytest.raises(UserError, match=r"correction\.cap is a setting of model\.policy=language"):
        config(**CARTPOLE, correction={"cap": 3.0})


@pytest.mark.parametrize(
    ("values", "key"),
    [({}, "809cb64cda6afddf"), (CARTPOLE, "7b93cdbc3f2dd530"), ({"model": {"obs_dim": 128}}, "83d2324a0e6ff40b")],
)
def test_settings_without_ray_have_the_stage_keys_that_they_had_before_there_was_any(
    values: dict[str, Any], key: str
) -> None:
    assert stage_key("ppo", config(**values), {}) == key


def test_what_changes_results_changes_the_key_and_addresses_do_not() -> None:
    def key(**values: Any) -> str:
        return stage_key("ppo", config(**values), {})

    ray = {"engine": "ray", "workers": 2, "max_staleness": 1}
    keys = [
        key(),
        key(rollout={"lag": 1}),
        key(rollout=ray),
        key(rollout={**ray, "workers": 3}),
        key(rollout={**ray, "max_staleness": 2}),
        key(correction={"kind": "vtrace"}),
        key(correction={"kind": "vtrace", "rho_bar": 2.0}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(rollout={**ray, "address": "10.0.0.1:6379", "timeout_seconds": 5}) == key(rollout=ray)
