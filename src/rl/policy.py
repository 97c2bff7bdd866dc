"""The specification's path to accord.models.heads."""

from accord.models.heads import ActorCritic, PolicyNetwork, ValueNetwork

__all__ = ["ActorCritic", "PolicyNetwork", "ValueNetwork"]
