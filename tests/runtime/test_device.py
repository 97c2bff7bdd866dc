"""Devices by name, and whether bfloat16 is fast there."""

from __future__ import annotations

import pytest
import torch

from accord.errors import UserError
from accord.runtime import device
from accord.runtime.device import resolve_device, slow_precision


@pytest.mark.parametrize(
    ("name", "fix"), [("gpu", "use auto, cpu, cuda"), ("cuda:99", "use device=auto"), ("meta", "use device=auto")]
)
def test_a_device_that_is_not_there_is_named(name: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=fix):
        resolve_device(name)


@pytest.mark.parametrize("fast", [False, True])
def test_slow_bfloat16_is_reported_only_where_it_is_slow(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_bfloat16_instructions", lambda: fast)
    cpu = torch.device("cpu")
    assert bool(slow_precision(cpu, "bfloat16")) is not fast
    assert slow_precision(cpu, "float32") == ""
    assert slow_precision(torch.device("cuda"), "bfloat16") == ""
