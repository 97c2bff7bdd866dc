"""Which metrics head a model: on held-out data where there are any, never silently those of the last minibatch.

``accord models list``, the lineage, the model card, ``accord status`` and the live table show these.  Listed here and not
in the stage table, which is in a higher layer than the registry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

HELD_OUT = "held-out data"
EPISODES = "evaluation episodes"
ROLLOUT = "last rollout"
TRAINING = "training data"
STEP = "last step"

_TEXT = ((HELD_OUT, ("heldout/loss",)), (STEP, ("nll",)))
HEADLINES: Mapping[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "base": _TEXT,
    "sft": _TEXT,
    "reward": ((HELD_OUT, ("heldout_accuracy",)), (TRAINING, ("train_accuracy",))),
    "dpo": ((HELD_OUT, ("heldout_accuracy", "heldout_margin")), (STEP, ("accuracy", "margin"))),
    "ppo": ((EPISODES, ("eval_return",)), (ROLLOUT, ("score", "episode_return", "kl"))),
}
"""By stage kind: what metrics are measured on, and their names; the first line of which a model has one heads it."""

IN_WORDS = {
    HELD_OUT: "on held-out data",
    EPISODES: "mean over the evaluation's episodes",
    ROLLOUT: "over all replies or episodes of the last rollout, whose prompts are training data",
    TRAINING: "on the training data; none was held out",
    STEP: "of the last training step's minibatch alone; no data was held out",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric, and what it is measured on (empty where unknown)."""

    name: str
    value: float
    on: str = ""

    @property
    def label(self) -> str:
        """The name, with what it is measured on where the name does not say so."""
        return f"{self.name} ({self.on})" if self.on in (ROLLOUT, STEP) else self.name


def headline(kind: str, metrics: Mapping[str, float]) -> tuple[Figure, ...]:
    """The figures that head a model of a stage kind, most telling first; of an unknown kind the first metric.

    Metrics that are not finite numbers are left out.
    """
    known = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and math.isfinite(value)}
    for on, names in HEADLINES.get(kind, ()):
        if found := tuple(Figure(name, known[name], on) for name in names if name in known):
            return found
    first = next((name for name in known if name != "learning_rate"), "")
    return (Figure(first, known[first]),) if first else ()
