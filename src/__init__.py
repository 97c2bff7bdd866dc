"""The specification's paths: each module forwards to accord."""

import sys

if sys.argv[:1] == ["-m"]:  # a command is starting: python -m src.training.rlhf_sft
    from accord.__main__ import end_on_ctrl_c

    end_on_ctrl_c()
