"""Where the learner runs, which workers take over, so that relative paths and the user's modules mean the same there."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A working folder and the search path of modules."""

    folder: str
    search_path: tuple[str, ...]

    @classmethod
    def here(cls) -> Place:
        """This process's."""
        return cls(os.getcwd(), tuple(sys.path))

    def enter(self) -> None:
        """Makes it this process's: the folder where it exists here, and what is missing in the search path."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sys.path[:] = dict.fromkeys([*sys.path, *self.search_path])
