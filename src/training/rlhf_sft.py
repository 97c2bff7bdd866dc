"""The specification's path of accord.algorithms.sft; its command is `accord sft`."""

import sys

from accord.cli import main_of
from accord.config.sft import SFTConfig

main = main_of("sft")

__all__ = ["SFTConfig", "main"]

if __name__ == "__main__":
    sys.exit(main())
