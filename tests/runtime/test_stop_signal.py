"""StopSignal: the first signal asks a run to stop, and the previous handlers are restored."""

from __future__ import annotations

import signal
import threading

import pytest

from accord.runtime.console import console
from accord.runtime.stop_signal import StopSignal


def test_a_signal_is_announced_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come in the middle of a print, or of an import that a print needs: printing there breaks both."""
    threads: list[threading.Thread] = []
    monkeypatch.setattr(console, "print", lambda *text: threads.append(threading.current_thread()))
    with StopSignal():
        signal.raise_signal(signal.SIGINT)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_sigterm_requests_a_stop() -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.raised


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_process_for_which_another_speaks_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StopSignal("") as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.raised
    assert capsys.readouterr() == ("", "")
