"""The metrics of the newest step, saved with the state: a run resumed after its last step still has them."""

from __future__ import annotations

from typing import Any


class LastMetrics(dict[str, float]):
    """Metrics by name, replaced at every step."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self.update(state)
