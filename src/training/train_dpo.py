"""The specification's path of accord.algorithms.dpo; its command is `accord dpo`."""

import sys

from accord.cli import main_of
from accord.config.preference import DPOConfig

main = main_of("dpo")

__all__ = ["DPOConfig", "main"]

if __name__ == "__main__":
    sys.exit(main())
