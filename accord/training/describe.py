"""Lines of the plan that is printed before training: model, steps, batch arithmetic, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from accord.config.common import Optimizer, Parallel
from accord.models.backbone import Backbone
from accord.training.memory import layout_of, memory_table, require_memory, size_of


class Trained(Protocol):
    """The settings of a stage that several processes can train."""

    @property
    def parallel(self) -> Parallel: ...

    @property
    def precision(self) -> str: ...

    @property
    def training(self) -> Optimizer: ...


def describe_steps(rows: int, settings: Optimizer, unit: str = "rows") -> str:
    """One line on how rows (or prompts) become optimizer steps.

    >>> describe_steps(100, Optimizer(batch_size=32, micro_batch_size=8, num_epochs=2))
    '100 rows / 32 a step = 4 steps an epoch x 2 epochs = 8 steps; each step accumulates 4 micro-batches of up to 8 rows'
    """
    size = min(settings.batch_size, rows)
    steps = -(-rows // settings.batch_size)
    micro = settings.micro_batch_size or settings.batch_size
    passes = -(-size // micro)
    how = "no accumulation" if passes == 1 else f"each step accumulates {passes} micro-batches of up to {micro} {unit}"
    return (
        f"{rows} {unit} / {settings.batch_size} a step = {steps} steps an epoch x {settings.num_epochs} epochs"
        f" = {steps * settings.num_epochs} steps; {how}"
    )


def describe_model(model: nn.Module, name: str) -> str:
    """One line with the number of parameters, of trained ones where some are frozen, and what its user should know."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rest = "" if trained == count else f", {trained:,} of them trained"
    notes = dict.fromkeys(note for module in model.modules() if isinstance(module, Backbone) for note in module.notes)
    return "; ".join([f"{name}: {count:,} parameters{rest}", *notes])


def tokens_in_a_pass(tokens: int, rows: int, settings: Optimizer) -> int:
    """Tokens of an average forward pass, where the data has ``tokens`` in ``rows``.

    >>> tokens_in_a_pass(1000, 100, Optimizer(batch_size=32, micro_batch_size=8))
    80
    """
    return tokens * min(settings.micro_batch_size or settings.batch_size, rows) // rows


def describe_memory(trained: nn.Module, width: int, tokens: int, frozen: Sequence[nn.Module] = ()) -> str:
    """One line with an estimate for forward passes of so many tokens.

    16 bytes a trained parameter (weight, gradient, two moments), 4 a frozen one, and activations of 40 floats of the
    model's width for each token and layer; measured runs are within a factor of two.
    """
    weights = 16 * _count([trained]) + 4 * _count(frozen)
    activations = 4 * 40 * tokens * width * _depth(trained)
    return f"about {(weights + activations) / 2**20:,.0f} MB ({weights / 2**20:,.0f} weights and optimizer, rest activations)"


def memory_by_strategy(
    config: Trained, trained: nn.Module, width: int, tokens: int, frozen: Sequence[nn.Module] = ()
) -> Callable[[Parallel], str]:
    """The table of a dry run: predicted memory of each device by strategy, for forward passes of so many tokens.

    Raises UserError where weights, gradients and moments alone do not fit into the device's memory.
    """
    size, bfloat16 = size_of(trained, width, frozen), config.precision == "bfloat16"
    require_memory(size, layout_of(config.parallel, bfloat16), next(trained.parameters()).device)

    def table(parallel: Parallel) -> str:
        layout = layout_of(parallel, bfloat16)
        require_memory(size, layout, next(trained.parameters()).device)
        share = tokens if config.training.micro_batch_size else tokens // layout.devices
        return memory_table(size, layout, max(share, 1))

    return table


def _count(models: Sequence[nn.Module]) -> int:
    seen = {id(p): p.numel() for m in models for p in m.parameters()}
    return sum(seen.values())


def _depth(model: nn.Module) -> int:
    """Layers of a model, as the length of its longest module list."""
    return max((len(m) for m in model.modules() if isinstance(m, nn.ModuleList)), default=1)
