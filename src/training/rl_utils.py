"""The specification's path to accord.functional.advantages."""

from accord.functional.advantages import compute_gae, explained_variance, normalize_advantages, normalize_rewards

__all__ = ["compute_gae", "explained_variance", "normalize_advantages", "normalize_rewards"]
