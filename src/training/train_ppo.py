"""The specification's path of accord.algorithms.ppo; its command is `accord ppo`."""

import sys

from accord.cli import main_of
from accord.config.on_policy import HeadsPPOConfig as PPOConfig

main = main_of("ppo")

__all__ = ["PPOConfig", "main"]

if __name__ == "__main__":
    sys.exit(main())
