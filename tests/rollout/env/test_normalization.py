"""Running moments: against all the data at once, against a plain loop, and against Gymnasium's own wrapper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accord.rollout.env.normalization import EPSILON, Normalizer, RunningMoments


def batches(*sizes: int, shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(3, 2, (n, 4)) * [1, 10, 0.1, 5] + shift for n in sizes]


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moments_are_those_of_everything_seen(shift: float) -> None:
    moments = RunningMoments((4,))
    parts = batches(5, 1, 30, 2, 7, shift=shift)
    for part in parts:
        moments.update(part)
        moments.update(part[:0])  # an empty update changes nothing
    whole = np.concatenate(parts)
    assert moments.count == 45
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-12 if not shift else 1e-6)


def test_moments_agree_with_gymnasium() -> None:
    """Gymnasium's start with a ten-thousandth of a row, hence the tolerance."""
    from gymnasium.wrappers.utils import RunningMeanStd

    ours, theirs = RunningMoments((4,)), RunningMeanStd(shape=(4,))
    for part in batches(50, 3, 200):
        ours.update(part)
        theirs.update(part)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-5)
    np.testing.assert_allclose(ours.variance, theirs.var, rtol=1e-4)


def test_observations_are_standardized_by_past_moments_and_clipped() -> None:
    normalizer = Normalizer(4, 3, 0.9, observations=True, rewards=False, clip=1.5)
    first, second = (b.astype(np.float32) for b in batches(3, 3))
    normalizer.observations(first)
    found = normalizer.observations(second)
    whole = np.concatenate([first, second]).astype(np.float64)
    expected = np.clip((second - whole.mean(0)) / np.sqrt(whole.var(0) + EPSILON), -1.5, 1.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == np.float32
    assert np.abs(found).max() <= 1.5
    before = normalizer.state_dict()["seen"]["count"]
    frozen = normalizer.observations(second, learn=False)
    assert normalizer.state_dict()["seen"]["count"] == before == 6
    np.testing.assert_array_equal(frozen, found)  # evaluation sees what training saw, and teaches nothing


def test_rows_that_no_action_follows_do_not_count() -> None:
    normalizer = Normalizer(4, 3, 0.9, observations=True, rewards=False)
    rows = batches(3)[0].astype(np.float32)
    normalizer.observations(rows, valid=np.array([True, False, True]))
    assert normalizer.seen is not None
    np.testing.assert_allclose(normalizer.seen.mean, rows[[0, 2]].mean(0), rtol=1e-6)


def test_rewards_are_divided_by_the_deviation_of_their_discounted_sum() -> None:
    rng = np.random.default_rng(1)
    normalizer = Normalizer(2, 3, 0.9, observations=False, rewards=True, clip=2.0)
    sums, seen = [0.0] * 3, []
    clipped = 0
    for _ in range(60):
        raw, ended, valid = rng.normal(1, 3, 3), rng.random(3) < 0.2, rng.random(3) < 0.8
        found = normalizer.rewards(raw, ended & valid, valid)
        for i in range(3):
            if valid[i]:
                sums[i] = 0.9 * sums[i] + raw[i]
                seen.append(sums[i])
        scale = np.sqrt(np.var(seen) + EPSILON) if seen else 1.0
        np.testing.assert_allclose(found, np.clip(raw / scale, -2, 2), rtol=1e-9)
        clipped += int((np.abs(found) == 2).sum())
        assert (np.sign(found) == np.sign(raw)).all()  # scaled, never shifted
        for i in range(3):
            if ended[i] and valid[i]:
                sums[i] = 0.0
    assert clipped > 0


def test_what_is_off_passes_unchanged() -> None:
    normalizer = Normalizer(4, 3, 0.9, observations=False, rewards=False)
    rows, rewards = batches(3)[0].astype(np.float32), np.array([1e9, -2.0, 0.5])
    nothing = np.zeros(3, dtype=bool)
    assert normalizer.observations(rows) is rows
    assert normalizer.rewards(rewards, nothing, ~nothing) is rewards


def test_a_saved_state_resumes_bit_exactly() -> None:
    def steps(normalizer: Normalizer, seed: int) -> list[Any]:
        rng = np.random.default_rng(seed)
        found = []
        for _ in range(20):
            seen, raw, ended = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=3), rng.random(3) < 0.1
            found += [normalizer.observations(seen), normalizer.rewards(raw, ended, np.ones(3, dtype=bool))]
        return found

    whole = Normalizer(4, 3, 0.99, observations=True, rewards=True)
    steps(whole, 0)
    state = whole.state_dict()
    expected = steps(whole, 1)
    resumed = Normalizer(4, 3, 0.99, observations=True, rewards=True)
    resumed.load_state_dict(state)
    for ours, theirs in zip(steps(resumed, 1), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
