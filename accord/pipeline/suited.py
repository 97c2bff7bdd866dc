"""Settings that a config leaves to accord, decided by the machine and the model before a stage's key is computed.

``precision: auto`` is bfloat16 on a CUDA device that has it, float32 elsewhere.  ``training.learning_rate: null`` is by the
size of the model (``accord.config.learning_rates``).  The decision is written to config.yaml, counts in the key, and is said
in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.config.common import Optimizer, PrecisionStage, Stage
from accord.config.learning_rates import HEAD, SMALL, UNKNOWN, suited_rate
from accord.config.load import put
from accord.io.parameter_count import parameters_of
from accord.pipeline.references import value_at

GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu")
"""Where there is none of these, there is no CUDA device, and torch need not be loaded to ask."""


@dataclass(frozen=True, slots=True)
class Suited:
    """A config without open settings, and what was decided, in words."""

    config: Stage
    decided: Mapping[str, str] = field(default_factory=dict)


def suited(kind: str, config: Stage) -> Suited:
    """The config with its open settings decided; one without open settings stays as it is.  Its names must be resolved."""
    values: dict[str, Any] = {}
    decided: dict[str, str] = {}
    if isinstance(config, PrecisionStage) and config.precision == "auto":
        values["precision"] = "bfloat16" if has_bfloat16(config.device) else "float32"
        if values["precision"] == "bfloat16":
            decided["precision"] = "bfloat16 (a CUDA device; precision=float32 for the other)"
    training = getattr(config, "training", None)
    if isinstance(training, Optimizer) and training.learning_rate is None:
        rates, words = _rates(kind, config, training)
        values |= rates
        decided |= words
    if not values:
        return Suited(config)
    changed = config.model_dump()
    for key, value in values.items():
        put(changed, key, value, key)
    return Suited(type(config).model_validate(changed), decided)


def has_bfloat16(device: str) -> bool:
    """Whether a device, as the setting names it, is a CUDA device with bfloat16 arithmetic of its own."""
    if device not in ("auto", "cuda") and not device.startswith("cuda:"):
        return False
    if not any(Path(file).exists() for file in GPU_FILES):
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _rates(kind: str, config: Stage, training: Optimizer) -> tuple[dict[str, float], dict[str, str]]:
    """The open learning rates by key, and for a model that is not small what was decided, in words."""
    source = str(value_at(config.model_dump(), "model.base_model"))
    count = parameters_of(source)
    rate = suited_rate(kind, UNKNOWN if count is None and _has_weights(Path(source)) else count or 0)
    if rate is None:
        return {"training.learning_rate": training.usual_rate}, {}
    rates = {"training.learning_rate": rate}
    if getattr(training, "critic_learning_rate", None) == 0:
        rates["training.critic_learning_rate"] = suited_rate("reward", count or UNKNOWN) or rate
    if getattr(training, "head_learning_rate", None) == 0:
        rates["training.head_learning_rate"] = HEAD * rate
    size = f"{(count or 0) / 1e6:,.0f} million parameters" if count else "a model of unknown size"
    parts = [f"{value:g}{_part(key)}" for key, value in rates.items()]
    return rates, {"rates": f"{', '.join(parts)}, by its size ({size}); training.learning_rate= sets another"}


def _has_weights(source: Path) -> bool:
    """Whether a place whose parameters cannot be counted holds weights of another form all the same."""
    return source.is_file() or any(source.glob("*.bin"))


def _part(key: str) -> str:
    """Which part of the model a rate is for; empty for the model itself."""
    return {"critic_learning_rate": " for the critic", "head_learning_rate": " for the head"}.get(key.split(".")[1], "")


__all__ = ["SMALL", "Suited", "has_bfloat16", "suited"]
