"""How a run ends that does not end well.  Imports nothing, so that the command line is quick to answer."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's: one sentence with what, where and the mend.  The command line exits with 2."""


class Interrupted(Exception):
    """The user asked to stop; the state is saved and a later run goes on from it.  The command line exits with 130."""


class Failed(Exception):
    """A stage of a pipeline failed; those that could went on.  The command line exits with 1."""
