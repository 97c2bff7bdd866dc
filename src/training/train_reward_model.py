"""The specification's path of accord.algorithms.reward_model; its command is `accord reward`."""

import sys

from accord.cli import main_of
from accord.config.reward import FeaturesRewardConfig as RewardConfig

main = main_of("reward")

__all__ = ["RewardConfig", "main"]

if __name__ == "__main__":
    sys.exit(main())
