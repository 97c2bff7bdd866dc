"""How one reply is sampled, in the chat and in Python."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from accord.config.load import build
from accord.config.section import Section


class ReplySettings(Section):
    """Settings of a reply that is shown to a user, not trained on."""

    max_new_tokens: Annotated[int, Field(ge=1, le=2**24)] = 128
    """Maximum tokens of the reply."""
    temperature: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.7
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.95
    """Nucleus sampling: probability mass to sample from."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Seed of the sampling."""


def reply_settings(where: str, **values: Any) -> ReplySettings:
    """The checked settings.  Raises UserError that names ``where`` and the setting."""
    return build(ReplySettings, values, {}, where)
