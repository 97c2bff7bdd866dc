"""Which figure heads a model: a held-out one where there is one, and never the last minibatch without saying so."""

from __future__ import annotations

import math

import pytest

from accord.config.section import known_keys
from accord.config.variants import Variants
from accord.registry.headline import HEADLINES, IN_WORDS, headline
from accord.stage_kinds.table import STAGE_KINDS


@pytest.mark.parametrize(
    ("kind", "metrics", "expected"),
    [
        ("sft", {"loss": 1.0, "nll": 2.0, "heldout/loss": 3.0}, [("heldout/loss", 3.0)]),
        ("base", {"loss": 1.0, "nll": 2.0}, [("nll (last step)", 2.0)]),
        ("reward", {"train_accuracy": 0.9, "heldout_accuracy": 0.7}, [("heldout_accuracy", 0.7)]),
        ("reward", {"train_accuracy": 0.9}, [("train_accuracy", 0.9)]),
        (
            "dpo",
            {"loss": 0.1, "accuracy": 1.0, "margin": 4.0, "heldout_accuracy": 0.7, "heldout_margin": 0.5},
            [("heldout_accuracy", 0.7), ("heldout_margin", 0.5)],
        ),
        ("dpo", {"accuracy": 1.0, "margin": 4.0}, [("accuracy (last step)", 1.0), ("margin (last step)", 4.0)]),
        ("ppo", {"kl": 5.0, "loss": 0.1, "score": 2.0}, [("score (last rollout)", 2.0), ("kl (last rollout)", 5.0)]),
        ("ppo", {"episode_return": 90.0, "eval_return": 200.0}, [("eval_return", 200.0)]),
        ("fuse", {"learning_rate": 1.0, "drift": 2.0}, [("drift", 2.0)]),
        ("fuse", {}, []),
        ("sft", {"heldout/loss": math.nan, "nll": 2.0}, [("nll (last step)", 2.0)]),
        ("sft", {"heldout/loss": None, "nll": math.inf}, []),
    ],
)
def test_the_headline_of_each_kind(kind: str, metrics: dict[str, float], expected: list[tuple[str, float]]) -> None:
    assert [(figure.label, figure.value) for figure in headline(kind, metrics)] == expected


def test_every_kind_that_trains_has_a_headline() -> None:
    def trains(kind: str) -> bool:
        settings = STAGE_KINDS[kind].settings
        classes = [*settings.classes.values()] if isinstance(settings, Variants) else [settings]
        return any("training" in known_keys(cls) for cls in classes)

    assert set(HEADLINES) == {kind for kind in STAGE_KINDS if trains(kind)}
    assert {on for lines in HEADLINES.values() for on, _ in lines} == set(IN_WORDS)
