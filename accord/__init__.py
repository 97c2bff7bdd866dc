"""accord: the RLHF pipeline you can run, interrupt, audit and check."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accord.models.actor_critic import ActorCritic
    from accord.models.language import LanguageActorCritic
    from accord.models.open import open_backbone
    from accord.models.reward import RewardModel

try:
    __version__ = version("accord")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0.0.0"

_WHERE = {
    "ActorCritic": "accord.models.actor_critic",
    "LanguageActorCritic": "accord.models.language",
    "RewardModel": "accord.models.reward",
    "open_backbone": "accord.models.open",
}

__all__ = ["ActorCritic", "LanguageActorCritic", "RewardModel", "__version__", "open_backbone"]


def __getattr__(name: str) -> Any:
    """Public names load what they need when they are first asked for, so that ``import accord`` is quick."""
    if name not in _WHERE:
        raise AttributeError(f"module 'accord' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
