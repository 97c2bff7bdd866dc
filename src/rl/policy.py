"""The specification's path to accord.models.actor_critic."""

from accord.models.actor_critic import ActorCritic, PolicyNetwork, ValueNetwork

__all__ = ["ActorCritic", "PolicyNetwork", "ValueNetwork"]
