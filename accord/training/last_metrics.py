"""The metrics of the newest step, kept with the resumable state: a run that goes on behind its last step still has them."""

from __future__ import annotations

from typing import Any


class Latest(dict[str, float]):
    """Metrics by name, replaced at every step."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self.update(state)
