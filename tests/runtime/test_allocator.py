"""glibc keeps freed memory where accord configures it, and is left alone where the user configured it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from accord.runtime.allocator import keep_memory
def heap():
    for line in open("/proc/self/maps"):
        if line.rstrip().endswith("[heap]"):
            low, high = line.split()[0].split("-")
            return int(high, 16) - int(low, 16)
print(keep_memory())
before = heap()
held = torch.ones(6 * 2**20)                                        # 24 MB
grown = heap() - before
del held
print(grown >> 20, heap() - before >> 20)
"""


def outcome(**environment: str) -> tuple[str, int, int]:
    """What ``keep_memory`` answers in a process of its own, MB that the heap grows by for 24, MB left once freed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "ACCORD_MALLOPT"))}
    run = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(run, capture_output=True, text=True, env={**kept, **environment}, check=True)
    answer, grown, left = done.stdout.split()
    return answer, int(grown), int(left)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_where_glibc_is_configured() -> None:
    accepted, grown, left = outcome()
    assert accepted == "True"
    assert grown >= 24
    assert left == grown
    assert outcome(ACCORD_MALLOPT="0")[0] == "False"
    assert outcome(ACCORD_MALLOPT="0")[1] < 24  # a mapping of its own, given back when freed


def test_a_users_own_settings_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.runtime import allocator

    monkeypatch.setenv("MALLOC_TOP_PAD_", "4096")
    assert not allocator.keep_memory()
    monkeypatch.delenv("MALLOC_TOP_PAD_")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.top_pad=4096")
    assert not allocator.keep_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.runtime import allocator

    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_memory()
