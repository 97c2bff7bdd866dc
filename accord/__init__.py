"""accord: the RLHF pipeline you can run, interrupt, audit and check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accord import stages
    from accord.api import load, run
    from accord.errors import Failed, Interrupted, UserError, Waiting
    from accord.models.heads import ActorCritic
    from accord.models.language import LanguageActorCritic
    from accord.models.open import open_backbone
    from accord.models.reward import RewardModel

    __version__: str

_MODULE_OF = {
    "ActorCritic": "accord.models.heads",
    "Failed": "accord.errors",
    "Interrupted": "accord.errors",
    "LanguageActorCritic": "accord.models.language",
    "RewardModel": "accord.models.reward",
    "UserError": "accord.errors",
    "Waiting": "accord.errors",
    "load": "accord.api",
    "open_backbone": "accord.models.open",
    "run": "accord.api",
}

__all__ = [
    "ActorCritic",
    "Failed",
    "Interrupted",
    "LanguageActorCritic",
    "RewardModel",
    "UserError",
    "Waiting",
    "__version__",
    "load",
    "open_backbone",
    "run",
    "stages",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that ``import accord`` is fast."""
    import importlib

    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("accord")
        except PackageNotFoundError:  # a checkout that is not installed
            return "0.0.0"
    if name != "stages" and name not in _MODULE_OF:
        raise AttributeError(f"module 'accord' has no attribute {name!r}")
    if name not in ("UserError", "Failed", "Interrupted", "Waiting"):
        from accord.errors import require_platform

        require_platform()
    if name == "stages":
        return importlib.import_module("accord.stages")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
