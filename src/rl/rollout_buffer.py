"""The specification's path to accord.rollout.buffer."""

from accord.rollout.buffer import RolloutBuffer

__all__ = ["RolloutBuffer"]
