"""Exceptions that end a run, with their exit codes.  Imports nothing, so that the command line starts fast."""

from __future__ import annotations


class UserError(Exception):
    """A user's mistake: one sentence with what, where and how to fix it.  The command line exits with 2."""


class Interrupted(Exception):
    """The user stopped the run; its state is saved, to resume from.  The command line exits with 130."""


class Failed(Exception):
    """A stage of a pipeline failed; those that do not need it have run.  The command line exits with 1."""
