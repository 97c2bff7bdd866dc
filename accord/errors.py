"""Exceptions that end a run, with their exit codes.  Imports next to nothing, so that the command line starts fast."""

from __future__ import annotations

import sys
from collections.abc import Sequence


class UserError(Exception):
    """A user's mistake: one sentence with what, where and how to fix it.  The command line exits with 2."""


class Interrupted(Exception):
    """The user stopped the run; its state is saved, to resume from.  The command line exits with 130."""


class Planned(Exception):
    """A dry run has come to where the stage would begin; nothing was written."""


class Failed(Exception):
    """A stage of a pipeline failed; those that do not need it have run.  The command line exits with 1."""


class Waiting(Exception):
    """A stage waits for people, and goes on when it is run again; stages that do not need it have run.

    The command line exits with 3.
    """


def require_platform() -> None:
    """Raises UserError on Windows, which has neither the signals nor the file locks that a run relies on."""
    if sys.platform == "win32":
        raise UserError(
            "accord runs on Linux and macOS; on Windows, install WSL (type 'wsl --install' in a terminal) and use accord in it."
        )


_TRAIN_NOTHING = frozenset(
    {"status", "why", "logs", "clean", "chat", "config", "models", "feedback", "label", "data", "--help", "--version"}
)
"""Commands that save no state."""


def stopped_at_once(words: Sequence[str]) -> str:
    """What is said when Ctrl-C ends a command, given by its words, outside of a stage."""
    if words and words[0] in _TRAIN_NOTHING:
        return "accord: stopped."
    return "accord: stopped immediately; the last saved state is kept."
