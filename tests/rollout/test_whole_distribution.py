"""What is trained is the whole distribution that is sampled: no top-k and no top-p in training (trap 20)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from accord.algorithms.ppo_language import LanguageSource
from accord.config.data import PairsConfig
from accord.config.load import build
from accord.config.ppo import PPO
from accord.errors import UserError
from accord.rollout.generate import Decoding, draw


def source(**sampling: Any) -> LanguageSource:
    config = build(PPO, {"sampling": sampling}, {}, "the test")
    tokenizer: Any = SimpleNamespace(eos_id=7, pad_id=0)
    nothing: Any = None
    return LanguageSource(config, nothing, nothing, nothing, nothing, tokenizer, nothing)


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "repetition_penalty", "min_new_tokens"])
def test_no_setting_cuts_the_distribution(name: str) -> None:
    with pytest.raises(UserError, match=rf"unknown key 'sampling\.{name}'"):
        source(**{name: 1})
    with pytest.raises(UserError, match=f"unknown key '{name}'"):
        build(PairsConfig, {name: 1}, {}, "the test")


def test_ppo_samples_from_all_of_it_where_a_nucleus_would_tilt_the_first_ratio() -> None:
    """Drawn from a nucleus and scored without it, the mean ratio is the mass kept, not 1."""
    probabilities = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    logits = probabilities.log().expand(20_000, -1)
    assert source(temperature=0.7).decoding == Decoding(64, 7, 0, temperature=0.7, top_p=1.0)
    whole = logits.log_softmax(-1)
    for decoding, mean in ((source().decoding, 1.0), (Decoding(1, 7, 0, top_p=0.7), 0.7)):
        tokens, kept = draw(logits, decoding, torch.Generator().manual_seed(0))
        ratio = (whole.gather(1, tokens[:, None])[:, 0] - kept).exp()
        assert float(ratio.mean()) == pytest.approx(mean, abs=1e-6)
        assert (len(set(tokens.tolist())) == 5) is (mean == 1.0)
