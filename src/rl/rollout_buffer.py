"""The specification's path to accord.rollout.env.buffer."""

from accord.rollout.env.buffer import RolloutBuffer

__all__ = ["RolloutBuffer"]
