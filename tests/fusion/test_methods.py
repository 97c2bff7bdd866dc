"""The merge of one tensor: hand-computed numbers, mergekit's own output, and what must hold for any merge."""

from __future__ import annotations

import importlib.util
import math
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from accord.fusion import methods
from accord.fusion.methods import Mixture, Thinning

MAKER = Path(__file__).parents[1] / "oracles" / "make_mergekit_golden.py"


def maker() -> ModuleType:
    """The script that made the golden file: its cases and inputs."""
    spec = importlib.util.spec_from_file_location("make_mergekit_golden", MAKER)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


golden = maker()
CASES = {key: (method, parameters) for key, method, parameters in golden.cases()}


def ours(method: str, parameters: dict[str, Any], tensors: list[Tensor]) -> Tensor:
    base, models = tensors[0], tensors[1:]
    if method == "slerp":
        return methods.slerp(base, models[0], parameters["t"])
    if method == "linear":
        return methods.linear(models, golden.WEIGHTS, parameters["normalize"])
    mixture = Mixture(golden.WEIGHTS, parameters["normalize"], parameters["lambda"])
    if method == "ties":
        return methods.ties(base, models, mixture, golden.DENSITIES)
    return methods.task_arithmetic(base, models, mixture)


def draws(seed: int, count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def some(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


# ------------------------------------------------------------------ mergekit's own output
@pytest.mark.parametrize("key", CASES)
def test_merged_tensors_are_mergekits(key: str) -> None:
    kept = load_file(golden.GOLDEN)
    for name in golden.SHAPES:
        tensors = [kept[f"input/{name}/{place}"] for place in range(4)]
        merged = ours(*CASES[key], tensors)
        torch.testing.assert_close(merged, kept[f"{key}/{name}"], rtol=1e-6, atol=1e-7)


def test_the_golden_file_says_who_made_it_and_covers_the_cases() -> None:
    with safe_open(golden.GOLDEN, "pt") as file:
        assert file.metadata()["version"] == "0.1.5"
        assert len(list(file.keys())) == len(golden.SHAPES) * (4 + len(CASES))
    for name, tensors in golden.inputs().items():
        for place, tensor in enumerate(tensors):
            assert torch.equal(load_file(golden.GOLDEN)[f"input/{name}/{place}"], tensor)


# ------------------------------------------------------------------ hand-computed numbers
def test_linear_equals_hand_computed_numbers() -> None:
    tensors = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])]
    assert methods.linear(tensors, [1.0, 3.0], True).tolist() == [2.5, -1.0]
    assert methods.linear(tensors, [1.0, 3.0], False).tolist() == [10.0, -4.0]
    assert methods.linear(tensors, [1.0, 0.0], True).tolist() == [1.0, 2.0]
    assert methods.linear(tensors, [0.0, 1.0], False).tolist() == [3.0, -2.0]
    with pytest.raises(ValueError, match="sum to zero"):
        methods.linear(tensors, [1.0, -1.0], True)


def test_slerp_of_right_angles_equals_hand_computed_numbers() -> None:
    """A third of the way over 90° is 30°; lengths 1 and 2 weigh each end."""
    merged = methods.slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 1 / 3)
    torch.testing.assert_close(merged, torch.tensor([math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)]))


def test_slerp_keeps_the_length_of_tensors_of_one_length() -> None:
    first, second = (x / x.norm() for x in some(2, 7, 5))
    for t in (0.1, 0.5, 0.9):
        merged = methods.slerp(first, second, t)
        assert float(merged.norm()) == pytest.approx(1, rel=1e-5)
        angle = math.acos(float((first * second).sum()))
        assert math.acos(float((first * merged).sum())) == pytest.approx(t * angle, rel=1e-4)


@pytest.mark.parametrize(("cosine", "straight"), [(0.9996, True), (0.9994, False), (-0.9996, True), (-0.9994, False)])
def test_slerp_of_nearly_parallel_tensors_is_the_straight_line(cosine: float, straight: bool) -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    line = 0.75 * first + 0.25 * second
    assert torch.equal(methods.slerp(first, second, 0.25), line) == straight


def test_task_arithmetic_equals_hand_computed_numbers() -> None:
    base = torch.tensor([1.0, 1.0])
    tensors = [torch.tensor([2.0, 1.0]), torch.tensor([1.0, 5.0])]
    assert methods.task_arithmetic(base, tensors, Mixture([0.5, 0.25], False, 2.0)).tolist() == [2.0, 3.0]
    assert methods.task_arithmetic(base, tensors, Mixture([0.5, 0.5], True, 1.0)).tolist() == [1.5, 3.0]
    assert methods.task_arithmetic(base, tensors[:1], Mixture([-1.0], False, 1.0)).tolist() == [0.0, 1.0], "forgetting"


def test_ties_equals_hand_computed_numbers() -> None:
    """Yadav et al., figure 1: trim the small ones, elect a sign where they conflict, average those that agree."""
    base = torch.zeros(4)
    first, second = torch.tensor([3.0, -1.0, 0.1, 2.0]), torch.tensor([-1.0, -2.0, 4.0, 0.2])
    # density 3/4 drops 0.1 of the first and 0.2 of the second; column 0 elects +, and only the first has it
    merged = methods.ties(base, [first, second], Mixture([1.0, 1.0], True, 1.0), [0.75, 0.75])
    assert merged.tolist() == [3.0, -1.5, 4.0, 2.0]
    merged = methods.ties(base, [first, second], Mixture([1.0, 1.0], False, 0.5), [0.75, 0.75])
    assert merged.tolist() == [1.5, -1.5, 2.0, 1.0]
    merged = methods.ties(base, [first, second], Mixture([1.0, 4.0], True, 1.0), [1.0, 1.0])
    assert merged[0] == -1.0, "weights count in the election"
    assert merged[1].item() == pytest.approx(-1.8)


def test_trim_keeps_the_number_asked_for_however_many_are_equal() -> None:
    assert methods.trim(torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.5).tolist() == [1.0, -1.0, 0.0, 0.0]
    assert methods.trim(torch.tensor([[0.5, -3.0], [2.0, 1.0]]), 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    assert methods.trim(torch.arange(10.0), 0.01).count_nonzero() == 1, "at least one"
    assert methods.trim(torch.zeros(0), 0.5).shape == (0,)


def test_interpolate_equals_hand_computed_numbers() -> None:
    base, model = torch.tensor([1.0, -1.0]), torch.tensor([3.0, 0.0])
    for eta, expected in (
        (0, [1.0, -1.0]),
        (0.25, [1.5, -0.75]),
        (1, [3.0, 0.0]),
        (1.5, [4.0, 0.5]),
        (-1, [-1.0, -2.0]),
    ):
        assert methods.interpolate(base, model, eta).tolist() == expected


# ------------------------------------------------------------------ DARE
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_density_and_is_unbiased(density: float) -> None:
    """Bernoulli: within four deviations of its mean, for the fraction kept and for every entry's mean over draws."""
    delta = torch.full((200_000,), 2.0)
    thinned = methods.drop(delta, density, draws(1)[0])
    deviation = math.sqrt(density * (1 - density) / len(delta))
    assert abs(float((thinned != 0).double().mean()) - density) < 4 * deviation
    assert torch.unique(thinned[thinned != 0]).tolist() == pytest.approx([2 / density]), "divided by the density"
    delta = some(1, 50)[0]
    generator, count = draws(2)[0], 4000
    mean = torch.stack([methods.drop(delta, density, generator) for _ in range(count)]).double().mean(0)
    spread = delta.abs().double() * math.sqrt((1 - density) / density / count)
    assert ((mean - delta) / spread).abs().max() < 4.5
    assert 0.6 < float(((mean - delta) / spread).std()) < 1.4


def test_dare_is_a_function_of_its_seed() -> None:
    base, *models = some(3, 40, 40)
    given: Any = (base, models, Mixture([0.5, 0.8], False, 1.0))
    for method in (methods.dare_linear, methods.dare_ties):
        first = method(*given, Thinning([0.3, 0.5], draws(5, 2)))
        assert torch.equal(first, method(*given, Thinning([0.3, 0.5], draws(5, 2))))
        assert not torch.equal(first, method(*given, Thinning([0.3, 0.5], draws(6, 2))))


def test_dare_at_full_density_is_what_it_thins() -> None:
    base, *models = some(4, 6, 7)
    weights, full = [0.5, 0.8, -0.1], [1.0] * 3
    assert torch.equal(
        methods.dare_linear(base, models, Mixture(weights, False, 0.7), Thinning(full, draws(0, 3))),
        methods.task_arithmetic(base, models, Mixture(weights, False, 0.7)),
    )
    assert torch.equal(
        methods.dare_ties(base, models, Mixture(weights, True, 0.7), Thinning(full, draws(0, 3))),
        methods.ties(base, models, Mixture(weights, True, 0.7), full),
    )


def test_dare_ties_counts_only_what_survived() -> None:
    """Where one of two survives, ``normalize`` divides by its weight alone."""
    base = torch.zeros(1000)
    models = [torch.full((1000,), 1.0), torch.full((1000,), 3.0)]
    merged = methods.dare_ties(base, models, Mixture([1.0, 1.0], True, 1.0), Thinning([0.5, 0.5], draws(0, 2)))
    assert sorted(set(merged.tolist())) == [0.0, 2.0, 4.0, 6.0]


# ------------------------------------------------------------------ what holds of any merge
def everything(base: Tensor, models: list[Tensor], weights: list[float], seed: int = 0) -> dict[str, Tensor]:
    densities = [0.6] * len(models)
    # DARE's draws belong to a model, whatever its position
    generators = [torch.Generator().manual_seed(seed + int(abs(m.sum()) * 1e6)) for m in models]
    again = [torch.Generator().manual_seed(seed + int(abs(m.sum()) * 1e6)) for m in models]
    return {
        "linear": methods.linear(models, weights, True),
        "sum": methods.linear(models, weights, False),
        "task_arithmetic": methods.task_arithmetic(base, models, Mixture(weights, False, 1.0)),
        "ties": methods.ties(base, models, Mixture(weights, True, 1.0), densities),
        "dare_linear": methods.dare_linear(base, models, Mixture(weights, False, 1.0), Thinning(densities, generators)),
        "dare_ties": methods.dare_ties(base, models, Mixture(weights, True, 1.0), Thinning(densities, again)),
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=0, max_size=3))
def test_the_order_of_models_does_not_matter(seed: int, shape: list[int]) -> None:
    base, *models = some(4, *shape, seed=seed)
    weights = [0.2, 0.5, 0.9]
    expected = everything(base, models, weights)
    for order in permutations(range(3)):
        found = everything(base, [models[i] for i in order], [weights[i] for i in order])
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.3, -0.5, 2.0]), st.booleans())
def test_ties_of_one_model_at_full_density_is_task_arithmetic(seed: int, weight: float, normalize: bool) -> None:
    base, model = some(2, 4, 3, seed=seed)
    ties = methods.ties(base, [model], Mixture([weight], normalize, 0.8), [1.0])
    torch.testing.assert_close(ties, methods.task_arithmetic(base, [model], Mixture([weight], normalize, 0.8)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1, 2))
def test_a_model_with_itself_is_itself(seed: int, t: float) -> None:
    base, model = some(2, 5, 3, seed=seed)
    pair, halves = [model, model], [0.5, 0.5]
    for name, merged in {
        "linear": methods.linear(pair, [0.3, 0.9], True),
        "slerp": methods.slerp(model, model, t),
        "interpolate": methods.interpolate(model, model, t),
        "task_arithmetic": methods.task_arithmetic(base, pair, Mixture(halves, False, 1.0)),
        "task_arithmetic on itself": methods.task_arithmetic(model, pair, Mixture([3.0, -1.0], False, 2.0)),
        "ties": methods.ties(base, pair, Mixture([1.0, 1.0], True, 1.0), [1.0, 1.0]),
        "ties on itself": methods.ties(model, pair, Mixture([1.0, 1.0], False, 5.0), [0.2, 0.2]),
        "dare on itself": methods.dare_linear(
            model, pair, Mixture(halves, False, 1.0), Thinning([0.1, 0.1], draws(0, 2))
        ),
        "dare ties on itself": methods.dare_ties(
            model, pair, Mixture(halves, True, 1.0), Thinning([0.1, 0.1], draws(0, 2))
        ),
    }.items():
        torch.testing.assert_close(merged, model, rtol=1e-5, atol=1e-5, msg=name)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_ends_of_the_arc_are_the_models(seed: int) -> None:
    first, second = some(2, 4, 6, seed=seed)
    torch.testing.assert_close(methods.slerp(first, second, 0.0), first)
    torch.testing.assert_close(methods.slerp(first, second, 1.0), second)
    torch.testing.assert_close(methods.slerp(first, second, 0.3), methods.slerp(second, first, 0.7))


def test_nothing_given_is_changed() -> None:
    base, *models = some(4, 5, 5)
    before = [x.clone() for x in (base, *models)]
    everything(base, models, [0.1, 0.2, 0.3])
    methods.slerp(base, models[0], 0.4)
    methods.interpolate(base, models[0], 0.4)
    assert all(torch.equal(x, y) for x, y in zip((base, *models), before, strict=True))
