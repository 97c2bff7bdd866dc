"""How one reply is sampled, in the chat and in Python."""

from __future__ import annotations

from typing import Any

from accord.config.load import build
from accord.config.numbers import PositiveShare, Seed, TemperatureOrZero, Tokens
from accord.config.section import Section


class ReplySettings(Section):
    """Settings of a reply that is shown to a user, not trained on."""

    max_new_tokens: Tokens = 128
    """Maximum tokens of the reply."""
    temperature: TemperatureOrZero = 0.7
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveShare = 0.95
    """Nucleus sampling: probability mass to sample from."""
    seed: Seed = 0
    """Seed of the sampling."""


def reply_settings(where: str, **values: Any) -> ReplySettings:
    """The checked settings.  Raises UserError that names ``where`` and the setting."""
    return build(ReplySettings, values, {}, where)
