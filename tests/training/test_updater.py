"""One optimizer step: micro-batches, schedule, clipping, decay, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from accord.config.common import Optimizer
from accord.errors import UserError
from accord.functional.masked import mean_of
from accord.training.updater import Updater, not_finite, schedule_factor
from accord.types import LossOutput, Mean

Rows = tuple[Tensor, Tensor]


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)


def rows(dtype: torch.dtype = torch.float64) -> Rows:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 6, generator=generator).to(dtype), torch.randn(12, generator=generator).to(dtype)


def updater_of(net: nn.Module, **settings: object) -> Updater:
    options = Optimizer.model_validate({"learning_rate": 0.01, **settings})
    return Updater([(net.parameters(), options.learning_rate)], options, total_steps=10)


def cut(data: Rows, sizes: Sequence[int]) -> list[Rows]:
    parts = [torch.split(x, list(sizes)) for x in data]
    return list(zip(*parts, strict=True))  # type: ignore[arg-type]


def squared(net: nn.Module, micro: Rows) -> LossOutput:
    x, y = micro
    error = net(x).squeeze(-1) - y
    return LossOutput(mean_of(error.square()), {"absolute": mean_of(error.detach().abs())})


@pytest.mark.parametrize("sizes", [[1] * 12, [2] * 6, [4, 4, 4], [1, 11], [7, 2, 3]])
def test_the_number_of_micro_batches_changes_nothing(sizes: list[int]) -> None:
    """Parts of unequal size included; in float64 only the order of summation differs."""
    nets = [model(), model()]
    for net, parts in zip(nets, ([12], sizes), strict=True):
        updater = updater_of(net)
        for _ in range(5):
            metrics = updater.step(cut(rows(), parts), lambda micro, net=net: squared(net, micro))
    for whole, split in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-12)
    assert metrics["learning_rate"] == 0.01
    assert set(metrics) == {"loss", "absolute", "grad_norm", "learning_rate"}


def test_metrics_are_means_over_the_whole_batch() -> None:
    net = model()
    x, y = rows()
    with torch.no_grad():
        error = net(x).squeeze(-1) - y
    metrics = updater_of(net).step(cut((x, y), [1, 11]), lambda micro: squared(net, micro))
    assert metrics["loss"] == pytest.approx(float(error.square().mean()), rel=1e-9)
    assert metrics["absolute"] == pytest.approx(float(error.abs().mean()), rel=1e-9)


def test_a_step_is_adamw_on_the_mean_gradient() -> None:
    """Compared with torch's optimizer on the mean loss, gradients clipped explicitly."""
    ours, theirs = model(torch.float32), model(torch.float32)
    data = rows(torch.float32)
    updater = updater_of(ours, weight_decay=0.1, max_grad_norm=0.3)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    oracle = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=0.01
    )
    for _ in range(4):
        metrics = updater.step([data], lambda micro: squared(ours, micro))
        oracle.zero_grad()
        (theirs(data[0]).squeeze(-1) - data[1]).square().mean().backward()
        norm = torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()  # type: ignore[union-attr]
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-4)  # before the cut
        assert norm > 0.3
        for p in theirs.parameters():
            p.grad *= 0.3 / (norm + 1e-6)  # type: ignore[operator]
        oracle.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weight_decay_is_for_matrices_only() -> None:
    net = model()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert all((p != 0).any() for p in before.values())
    updater = updater_of(net, weight_decay=0.5)

    def nothing(micro: Rows) -> LossOutput:
        return LossOutput(Mean(sum(p.sum() for p in net.parameters()) * 0.0, torch.tensor(1)), {})  # type: ignore[arg-type]

    updater.step([rows()], nothing)
    for name, p in net.named_parameters():
        expected = before[name] * (1 - 0.01 * 0.5) if p.ndim > 1 else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=0)


def test_what_is_frozen_stays_and_groups_have_their_own_rates() -> None:
    net = model()
    net[0].requires_grad_(False)  # type: ignore[index]
    frozen = net[0].weight.detach().clone()  # type: ignore[index,union-attr]
    fast, slow = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    updater = Updater([(net.parameters(), 0.5), ([fast], 0.1), ([slow], 0.01)], Optimizer(max_grad_norm=1e9), 10)

    def loss(micro: Rows) -> LossOutput:
        return LossOutput(Mean((fast + slow).sum() + squared(net, micro).loss.total, torch.tensor(1)), {})

    metrics = updater.step([rows()], loss)
    assert torch.equal(net[0].weight, frozen)  # type: ignore[index]
    torch.testing.assert_close(fast.detach(), torch.full((3,), -0.1))  # Adam's first step is the rate
    torch.testing.assert_close(slow.detach(), torch.full((3,), -0.01))
    assert metrics["learning_rate"] == 0.5


# ------------------------------------------------------------------------------------- schedule
def test_schedules_equal_hand_computed_factors() -> None:
    def factors(kind: str) -> list[float]:
        return [schedule_factor(kind, s, 6, 2) for s in range(7)]

    assert factors("constant") == [0.5, 1, 1, 1, 1, 1, 1]
    assert factors("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0])
    half = math.cos(math.pi / 4)
    assert factors("cosine") == pytest.approx([0.5, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2, 0])
    assert schedule_factor("linear", 0, 4, 0) == 1.0
    assert schedule_factor("linear", 99, 4, 0) == 0.0
    assert schedule_factor("cosine", 99, 4, 0) == pytest.approx(0.0)
    assert schedule_factor("linear", 3, 2, 5) == pytest.approx(0.8)  # a warm-up longer than the training


def test_the_optimizer_uses_the_schedule() -> None:
    net = model()
    updater = updater_of(net, schedule="linear", warmup_steps=2)
    rates = []
    for _ in range(4):
        metrics = updater.step([rows()], lambda micro: squared(net, micro))
        rates.append(metrics["learning_rate"])
        assert {g["lr"] for g in updater.optimizer.param_groups} == {metrics["learning_rate"]}
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.00875])


def test_a_given_place_in_the_schedule_moves_the_rate_and_nothing_else() -> None:
    """Weight decay off: Adam's step is the rate times a direction that depends on the steps taken alone."""
    moves = []
    for places in ([None, None], [0, 7]):
        net = model()
        updater = updater_of(net, schedule="linear")
        updater.step([rows()], lambda micro, net=net: squared(net, micro), places[0])
        before = [p.detach().clone() for p in net.parameters()]
        metrics = updater.step([rows()], lambda micro, net=net: squared(net, micro), places[1])
        assert metrics["learning_rate"] == pytest.approx(0.01 * (0.9 if places[1] is None else 0.3))
        moves.append(torch.cat([(p.detach() - b).reshape(-1) for p, b in zip(net.parameters(), before, strict=True)]))
        assert updater.steps == 2
    torch.testing.assert_close(moves[1], moves[0] / 3, rtol=1e-9, atol=1e-15)


def test_the_adaptive_rate_follows_the_kl() -> None:
    net = model()
    updater = updater_of(net)
    seen = []
    for kl in (0.021, 0.021, 0.02, 0.005, 0.0049):  # target 0.01: down above 0.02, up below 0.005
        updater.adapt_to_kl(kl, 0.01)
        seen.append(updater.adaptive)
    assert seen == pytest.approx([1 / 1.5, 1 / 2.25, 1 / 2.25, 1 / 2.25, 1 / 1.5])
    metrics = updater.step([rows()], lambda micro: squared(net, micro))
    assert metrics["learning_rate"] == pytest.approx(0.01 / 1.5)
    for _ in range(100):
        updater.adapt_to_kl(1.0, 0.01)
    assert updater.adaptive == 1e-2
    for _ in range(100):
        updater.adapt_to_kl(0.0, 0.01)
    assert updater.adaptive == 1e1


# ------------------------------------------------------------------------------------- refusals and state
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_is_refused_and_touches_nothing(bad: float, where: str) -> None:
    net = model()
    updater = updater_of(net, weight_decay=0.1)
    updater.step([rows()], lambda micro: squared(net, micro))
    before = [p.detach().clone() for p in net.parameters()]
    state = updater.state_dict()

    def broken(micro: Rows) -> LossOutput:
        output = squared(net, micro)
        if where == "loss":
            return LossOutput(Mean(output.loss.total + bad, output.loss.count), output.metrics)
        output.loss.total.register_hook(lambda grad: grad * bad)
        return output

    with pytest.raises(UserError, match=r"step 2: loss .* not finite; the weights were not changed"):
        updater.step(cut(rows(), [6, 6]), broken)
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p, old)
    assert updater.steps == 1
    for key, value in state["optimizer"]["state"].items():
        for name, tensor in value.items():
            assert torch.equal(updater.state_dict()["optimizer"]["state"][key][name], tensor)


def test_an_objective_that_reaches_no_weight_is_our_own_bug() -> None:
    net = model()
    free = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="no trained parameter"):
        updater_of(net).step([rows()], lambda micro: LossOutput(mean_of(free), {}))


def test_a_restored_updater_resumes_bit_exactly() -> None:
    def steps(net: nn.Module, updater: Updater, n: int) -> None:
        for _ in range(n):
            updater.step([rows(torch.float32)], lambda micro: squared(net, micro))
            updater.adapt_to_kl(1.0, 0.01)

    net = model(torch.float32)
    updater = updater_of(net, schedule="cosine", warmup_steps=1)
    steps(net, updater, 3)
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, updater.state_dict())
    steps(net, updater, 3)
    other = model(torch.float32)
    other.load_state_dict(weights)
    resumed = updater_of(other, schedule="cosine", warmup_steps=1)
    resumed.load_state_dict(state)
    steps(other, resumed, 3)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# ------------------------------------------------------------------------------------- Adam's epsilon
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-3])
def test_the_first_step_of_adam_has_the_configured_epsilon(eps: float) -> None:
    """Bias-corrected moments of one gradient g are g and g², so the step is rate · g / (|g| + ε)."""
    weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    updater = Updater([([weight], 0.1)], Optimizer(adam_eps=eps), 1)
    updater.step([1e-5], lambda slope: LossOutput(mean_of(slope * weight), {}))
    assert float(weight.detach()) == pytest.approx(-0.1 * 1e-5 / (1e-5 + eps), rel=1e-5)


def test_the_first_step_is_not_blamed_on_the_learning_rate() -> None:
    """No weight has moved before it; later the learning rate is the likely cause, and bfloat16 where it is used."""
    first, later = str(not_finite(1, math.nan, 1.0)), str(not_finite(7, 2.0, math.inf))
    assert first.startswith(
        "step 1: loss nan, gradient norm 1: not finite; the weights were not changed. No weight has moved"
    )
    assert "look for huge numbers in the model's weights, in rewards or margins" in first
    assert later.startswith("step 7: loss 2, gradient norm inf: not finite; ")
    assert later.endswith("; the weights were not changed. Lower training.learning_rate.")
    assert str(not_finite(1, math.nan, 1.0, "bfloat16")).endswith("Use precision=float32.")
    assert str(not_finite(2, math.nan, 1.0, "bfloat16")).endswith(
        "Use precision=float32, or lower training.learning_rate."
    )
