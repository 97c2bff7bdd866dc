"""Gymnasium's spaces as vectors: one-hot parts, flattened mappings, actions of every kind, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces

from accord.errors import UserError
from accord.rollout.env.spaces import flattener, spaces_of

TWO = spaces.Discrete(2)
VECTOR = spaces.Box(-1, 1, (2,))


# ------------------------------------------------------------------ observations
@pytest.mark.parametrize(
    ("space", "observation", "expected"),
    [
        (VECTOR, [0.5, -3.0], [0.5, -3.0]),  # bounds are not checked: many tasks exceed theirs
        (spaces.Box(-1, 1, ()), 0.5, [0.5]),
        (spaces.Box(0, 9, (2, 2), np.uint8), np.array([[1, 2], [3, 4]], np.uint8), [1, 2, 3, 4]),
        (spaces.Discrete(4), 2, [0, 0, 1, 0]),
        (spaces.Discrete(3, start=-1), np.int64(-1), [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), [0, 1, 0, 0, 1]),
        (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1]),
        (spaces.Tuple((TWO, VECTOR)), (1, np.array([3.0, 4.0])), [0, 1, 3, 4]),
        (
            spaces.Dict({"seen": VECTOR, "held": spaces.Dict({"key": TWO})}),
            {"held": {"key": 1}, "seen": np.array([3.0, 4.0])},
            [0, 1, 3, 4],  # gymnasium sorts keys
        ),
    ],
    ids=lambda x: str(x)[:30] if isinstance(x, Space) else "",
)
def test_an_observation_becomes_a_vector(space: Any, observation: Any, expected: list[float]) -> None:
    assert flattener(space)(observation).tolist() == expected
    assert spaces_of("a task", space, TWO).obs_dim == len(expected)


@pytest.mark.parametrize(
    ("space", "observation", "message"),
    [
        (VECTOR, [0.5], r"of shape \(1,\), expected \(2,\)"),
        (VECTOR, 0.5, r"of shape \(\), expected \(2,\)"),
        (VECTOR, [[1], [2, 3]], "that is list, expected an array of numbers"),
        (VECTOR, np.array(["a", "b"]), "that holds <U1, expected numbers"),
        (VECTOR, None, "that holds NoneType, expected numbers"),
        (spaces.Discrete(4), 4, r"4, which is not one of Discrete\(4\)"),
        (
            spaces.Discrete(4),
            -1,
            r"-1, which is not one of Discrete\(4\)",
        ),  # an index from the end, were it not checked
        (spaces.Discrete(4), 1.0, r"1.0, which is not one of Discrete\(4\)"),
        (spaces.Discrete(3, start=5), 0, "0, which is not one of"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3]), r"\[1 3\], which is not one of MultiDiscrete"),
        (spaces.MultiBinary(2), np.array([0, 2]), r"\[0 2\], which is not one of MultiBinary\(2\)"),
        (spaces.Tuple((TWO, TWO)), (1,), "with 1 parts, expected 2 parts"),
        (spaces.Tuple((TWO, TWO)), (1, 2), "whose part 1 is a value 2, which is not one of"),
        (spaces.Dict({"a": TWO, "b": TWO}), {"a": 1}, "with the keys a, expected the keys a, b"),
        (spaces.Dict({"a": TWO}), np.zeros(2), "with float64, expected the keys a"),
        (
            spaces.Dict({"a": spaces.Dict({"b": VECTOR})}),
            {"a": {"b": [1]}},
            "'a' is a value whose 'b' is a value of shape",
        ),
    ],
)
def test_an_observation_that_is_not_of_the_space_is_named(space: Any, observation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flattener(space)(observation)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (None, "'a task' shows None, needed are numbers"),
        (spaces.Text(4), r"'a task' shows Text\(.*needed are numbers"),
        (spaces.Dict({"a": TWO, "b": spaces.Tuple((TWO, spaces.Sequence(TWO)))}), r"'a task' shows Sequence\("),
        (spaces.Box(0, 1, (0,)), "which has no numbers to learn from"),
        (spaces.Box(0, 255, (210, 160, 3), np.uint8), r"shows Box\(.*100800 numbers, and at most 10000 are flattened"),
        (spaces.Discrete(10_001), "at most 10000 are flattened"),
        (spaces.Box(0, 1, (1_000_001,)), "1000001 numbers, and at most 1000000 are supported; give it smaller"),
    ],
)
def test_observations_that_are_no_vectors_are_refused(space: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spaces_of("a task", space, TWO)


def test_a_small_image_is_flattened_and_said() -> None:
    found = spaces_of("a task", spaces.Box(0, 255, (8, 8, 3), np.uint8), TWO)
    assert found.obs_dim == 192
    assert found.notes == ("observations of 8 x 8 x 3 are flattened to 192 numbers; there are no convolutions here",)
    assert not spaces_of("a task", spaces.Box(0, 1, (8, 8)), TWO).notes


# ------------------------------------------------------------------ actions
@pytest.mark.parametrize(
    ("space", "drawn", "expected", "words"),
    [
        (spaces.Discrete(3, start=-1), [0, 2], [-1, 1], "3 actions"),
        (spaces.MultiDiscrete([2, 3]), [[1, 2], [0, 0]], [[1, 2], [0, 0]], "2 choices among 2 x 3"),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), [[1, 2]], [[6, 1]], "2 choices among 2 x 3"),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), [[1, 2, 3, 4]], [[[1, 2], [3, 4]]], "4 choices among 2 x 3 x 4 x 5"),
        (spaces.MultiBinary(2), [[1, 0]], [[1, 0]], "2 choices among 2 x 2"),
        (spaces.Box(-1, 1, (1, 2)), [[3.0, 0.5]], [[[1.0, 0.5]]], "vectors of 2 reals"),
        (spaces.Box(-1, 1, ()), [[0.5]], [0.5], "vectors of 1 reals"),
    ],
    ids=lambda x: str(x) if isinstance(x, Space) else "",
)
def test_an_action_is_one_of_the_tasks(space: Any, drawn: Any, expected: Any, words: str) -> None:
    found = spaces_of("a task", VECTOR, space)
    dtype = np.float32 if found.continuous else np.int64
    actions = found.to_task(np.array(drawn, dtype))
    assert actions.tolist() == expected
    assert all(space.contains(action) for action in actions)
    assert found.words() == f"observations of 2 numbers, {words}"
    assert found.action_length == (np.array(drawn).shape[1] if np.array(drawn).ndim > 1 else 0)


@pytest.mark.parametrize("low_high", [(-1, 1), (-2, 2), (0, 1), (-0.4, 0.4), (-3, 3), (-np.inf, np.inf), (0, np.inf)])
def test_bounds_near_one_are_not_scaled(low_high: tuple[float, float]) -> None:
    """The bounds of the recipes and of MuJoCo's tasks: what the policy draws is what the task gets, bit for bit."""
    found = spaces_of("a task", VECTOR, spaces.Box(*low_high, (2,)))
    drawn = np.array([[0.1, 0.3]], dtype=np.float32)
    assert found.scale is None
    assert not found.notes
    assert found.to_task(drawn).tolist() == drawn.tolist()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(10**8),
        spaces.MultiDiscrete([10**6, 2]),
        spaces.MultiBinary(10**6),
        spaces.Box(-1, 1, (10**6 + 1,)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_more_actions_than_a_network_can_have_outputs_are_refused(space: Any) -> None:
    with pytest.raises(UserError, match=r"'a task' takes .*outputs of a policy, and at most 1000000 are supported"):
        spaces_of("a task", VECTOR, space)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("error")
def test_bounds_at_the_end_of_their_dtype_overflow_nowhere(dtype: Any) -> None:
    most = np.finfo(dtype).max
    found = spaces_of("a task", VECTOR, spaces.Box(-most, most, (2,), dtype))
    actions = found.to_task(np.array([[-3.0, 0.0], [0.5, 9.0]], np.float32))
    assert np.isfinite(actions).all()
    assert actions[0, 1] == 0
    assert (actions[0, 0], actions[1, 1]) == (-most, most)


def test_bounds_far_from_one_are_scaled_and_said() -> None:
    low, high = np.array([-1, 0, 100, -1e-3, 50], np.float32), np.array([1, 100, 300, 1e-3, np.inf], np.float32)
    found = spaces_of("a task", VECTOR, spaces.Box(low, high))
    drawn = np.array([[-1] * 5, [0] * 5, [0.5] * 5, [9] * 5], np.float32)
    expected = [[-1, 0, 100, -1e-3, 50], [0, 50, 200, 0, 50], [0.5, 75, 250, 5e-4, 50.5], [1, 100, 300, 1e-3, 59]]
    np.testing.assert_allclose(found.to_task(drawn), expected, rtol=1e-6)
    (note,) = found.notes
    assert note.startswith("4 of 5 components of an action have bounds far from [-1, 1]")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Box(0, 9, (2,), np.int64),
            r"takes Box\(0, 9, \(2,\), int64\), needed is a Discrete.*; make it MultiDiscrete",
        ),
        (
            spaces.Dict({"a": TWO}),
            r"takes Dict\('a': Discrete\(2\)\), needed is a Discrete, MultiDiscrete or MultiBinary",
        ),
        (spaces.Tuple((TWO, TWO)), "takes Tuple"),
        (spaces.Box(0, 1, (0,)), "takes Box"),
        (None, "takes None"),
    ],
    ids=str,
)
def test_actions_that_no_policy_here_takes_are_refused(space: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spaces_of("a task", VECTOR, space)


def test_bounds_in_the_wrong_order_are_refused() -> None:
    space = spaces.Box(-1, 1, (2,))
    space.low[:] = 2
    with pytest.raises(UserError, match="whose lower bounds are not below the upper ones"):
        spaces_of("a task", VECTOR, space)
