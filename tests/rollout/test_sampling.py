"""Which replies are sampled together, and that this changes none of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from accord.models.open import open_backbone
from accord.rollout.noise import reply_keys
from accord.rollout.sampling import Budget, sample_groups, sampling_groups


def test_every_prompt_is_answered_once_at_each_temperature() -> None:
    groups = sampling_groups(Budget(5, (1.0, 0.7), 64, 6), 5)
    assert [g.round for g in groups] == [0, 0, 0, 1, 1, 1]
    assert [list(g.prompts) for g in groups] == [[0, 1], [2, 3], [4]] * 2
    assert [(g.temperature, g.samples) for g in groups] == [(1.0, 3)] * 3 + [(0.7, 2)] * 3


def test_replies_do_not_depend_on_how_prompts_are_grouped(world: Any, tokenizer: Any) -> None:
    backbone, prompts = open_backbone(world.mamba).eval(), [[5, 6, 7], [8, 9], [10]]
    keys = partial(reply_keys, 3, "replies")
    found = [
        sorted(
            (r.prompt, r.temperature, r.tokens)
            for group in sample_groups(backbone, tokenizer, prompts, budget, keys)
            for r in group
        )
        for budget in (Budget(3, (1.0, 0.7), 6, 1), Budget(3, (1.0, 0.7), 6, 100))
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 9
