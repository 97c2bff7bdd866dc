"""Updater: one optimizer step on a batch and an objective.  The only place that calls ``backward`` of a stage's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from accord.config.common import Optimizer
from accord.distributed import mesh
from accord.distributed.gradients import Replicas, are_mixed, clip, scale
from accord.distributed.tensors import fit
from accord.errors import UserError
from accord.runtime.device import autocast
from accord.types import LossOutput, Mean

B = TypeVar("B")
Objective = Callable[[B], LossOutput]


@dataclass(frozen=True, slots=True)
class Uncounted(Generic[B]):
    """A micro-batch that keeps a rank in step with the others and adds nothing to loss, gradient or metrics."""

    batch: B


def schedule_factor(kind: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at a step counted from 0: linear warmup, then constant, linear or cosine.

    >>> [round(schedule_factor("linear", s, 6, 2), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if kind == "linear":
        return max(0.0, 1.0 - done)
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def adapt_factor(factor: float, approx_kl: float, target: float) -> float:
    """The KL-adaptive rate of rl_games: divided by 1.5 above twice the target, multiplied by it below half."""
    if approx_kl > 2.0 * target:
        return max(factor / 1.5, 1e-2)
    return min(factor * 1.5, 1e1) if approx_kl < 0.5 * target else factor


def not_finite(step: int, loss: float, norm: float, precision: str = "float32") -> UserError:
    """The error raised instead of a step where loss or gradient is not finite: what was found, and its likely cause.

    At the first step no weight has moved, and the weights that were opened are finite, so the learning rate is no cause.
    """
    if precision == "bfloat16":
        remedy = "Use precision=float32" + (", or lower training.learning_rate." if step > 1 else ".")
    elif step > 1:
        remedy = "Lower training.learning_rate."
    else:
        remedy = (
            "No weight has moved yet, so the learning rate is not the cause: look for huge numbers in the model's weights,"
            " in rewards or margins, and in coefficients such as training.beta or reward.scale."
        )
    return UserError(
        f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}: not finite; the weights were not changed. {remedy}"
    )


class Updater:
    """Owns the optimizer, the schedule and gradient clipping.

    A batch is a sequence of micro-batches; their losses are sums, and the gradient is divided once by the total
    count over all ranks, so that neither the number of micro-batches nor that of ranks changes anything.
    """

    def __init__(
        self,
        groups: Sequence[tuple[Iterable[nn.Parameter], float]],
        settings: Optimizer,
        total_steps: int,
        precision: str = "float32",
    ) -> None:
        """``groups``: parameters with their peak learning rates; the rest comes from ``settings``."""
        self.settings, self.total_steps, self.precision = settings, total_steps, precision
        self.steps = 0
        self.adaptive = 1.0
        options: list[dict[str, Any]] = []
        self.rates: list[float] = []
        for parameters, rate in groups:
            trained = [p for p in parameters if p.requires_grad]
            matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
            for members, decay in ((matrices, settings.weight_decay), (vectors, 0.0)):
                if members:
                    options.append({"params": members, "lr": rate, "weight_decay": decay})
                    if are_mixed(members):  # one after another
                        options[-1] |= {"fused": False, "foreach": False}
                    self.rates.append(rate)
        self.parameters: list[nn.Parameter] = [p for group in options for p in group["params"]]
        self.device = self.parameters[0].device
        self.replicas = Replicas(self.parameters)
        fused = self.device.type in ("cpu", "cuda")
        betas = (0.9, settings.adam_beta2)
        self.optimizer = torch.optim.AdamW(options, betas=betas, eps=settings.adam_eps, fused=fused)

    def step(
        self, batch: Sequence[B | Uncounted[B]], objective: Objective[B], schedule_step: int | None = None
    ) -> dict[str, float]:
        """One optimizer step; returns the metrics, over all ranks, as numbers.

        ``batch`` is this rank's part, of equally many micro-batches on every rank.
        ``schedule_step`` is the position in the schedule, counted from 0; None: the number of steps taken so far.
        Raises UserError where loss or gradient is not finite.
        """
        position = self.steps if schedule_step is None else schedule_step
        factor = self.adaptive * schedule_factor(
            self.settings.schedule, position, self.total_steps, self.settings.warmup_steps
        )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        metrics: dict[str, Mean] = {}
        for number, micro in enumerate(batch):
            mesh.at(f"step {self.steps + 1}, forward pass {number + 1}")
            with self.replicas.accumulating(number + 1 < len(batch)):
                with autocast(self.device, self.precision):
                    output = self._evaluate(objective, micro)
                mesh.at(f"step {self.steps + 1}, backward pass {number + 1}")
                output.loss.total.backward()  # type: ignore[no-untyped-call]
            for key, mean in {"loss": output.loss.detach(), **output.metrics}.items():
                metrics[key] = metrics[key] + mean if key in metrics else mean
        metrics = mesh.add_means(metrics)
        norm = self._scale_and_clip(metrics["loss"].count)
        if not (math.isfinite(norm) and math.isfinite(metrics["loss"].value())):
            raise not_finite(self.steps + 1, metrics["loss"].value(), norm, self.precision)
        self.optimizer.step()
        self.steps += 1
        return {**_numbers(metrics), "grad_norm": norm, "learning_rate": self.rates[0] * factor}

    def _evaluate(self, objective: Objective[B], micro: B | Uncounted[B]) -> LossOutput:
        if not isinstance(micro, Uncounted):
            return self.replicas.evaluate(objective, micro)
        output = self.replicas.evaluate(objective, cast(B, micro.batch))
        return LossOutput(_nothing(output.loss), {name: _nothing(mean) for name, mean in output.metrics.items()})

    def _scale_and_clip(self, count: torch.Tensor) -> float:
        # DDP and FSDP average over the ranks: times their number, it is the sum.
        scale(self.parameters, float(count.clamp(min=1)) / mesh.size())
        return clip(self.parameters, self.settings.max_grad_norm)

    def adapt_to_kl(self, approx_kl: float, target: float) -> None:
        self.adaptive = adapt_factor(self.adaptive, approx_kl, target)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "adaptive": self.adaptive}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        moments = {
            number: {name: fit(value, self.parameters[number]) for name, value in of_one.items()}
            for number, of_one in state["optimizer"]["state"].items()
        }
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.steps, self.adaptive = int(state["steps"]), float(state["adaptive"])


def _nothing(mean: Mean) -> Mean:
    return Mean(mean.total * 0.0, mean.count * 0)


def _numbers(metrics: Mapping[str, Mean]) -> dict[str, float]:
    return {key: mean.value() for key, mean in metrics.items()}
