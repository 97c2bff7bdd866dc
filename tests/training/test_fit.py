"""The end of an optimizer step: logged, saved, and left where the user asked to stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accord.errors import Interrupted
from accord.runtime.run import Run
from accord.runtime.stop_signal import StopSignal
from accord.training.checkpoint import Checkpoint
from accord.training.fit import finish_step


class SignalAfterReads(StopSignal):
    """Ctrl-C that comes after ``raised`` was read ``reads`` times: between any two lines of a step."""

    def __init__(self, reads: int) -> None:
        self.reads = reads

    @property
    def raised(self) -> bool:  # type: ignore[override]
        self.reads -= 1
        return self.reads < 0


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
def test_whenever_ctrl_c_comes_a_stopped_run_has_saved_its_state(open_run: Callable[..., Run], reads: int) -> None:
    run = open_run("sft", save_every=100)
    run.begin(9)
    run.stop = SignalAfterReads(reads)
    path = run.directory / "state.pt"
    checkpoint = Checkpoint(path, run.key, {})

    def train() -> None:
        for _ in range(9):
            finish_step(run, checkpoint, {"loss": 1.0})

    with pytest.raises(Interrupted, match="the state is saved"):
        train()
    assert path.exists()
    assert checkpoint.restore() == run.step
